// Places of the source as small numbers, and back: a site (file and line) where the executor has
// one, else the address of the instruction.
#pragma once
#include <cstdint>
#include <string>

#include "kernels/simt/site.h"

namespace lapidary::simt {

uint32_t PlaceId(Site site, const void* pc);
// "file.cu:12", or the function and address when there are no line tables.
std::string PlaceName(uint32_t place);

}  // namespace lapidary::simt
