#include "kernels/simt/checker/places.h"

#include <dlfcn.h>

#include <array>
#include <cstdio>
#include <cstring>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace lapidary::simt {
namespace {

struct Place {
  Site site;
  const void* pc;
};

struct Table {
  std::mutex mu;
  std::vector<Place> places{Place{}};  // 0 stands for no place
  std::unordered_map<uint64_t, uint32_t> ids;
  std::unordered_map<uint32_t, std::string> names;
};
Table& Places() {
  static Table* table = new Table;
  return *table;
}

uint64_t Key(Site site, const void* pc) {
  const auto file = reinterpret_cast<uintptr_t>(site.file);
  return site.file ? file * 0x9E3779B97F4A7C15u + static_cast<uint64_t>(site.line)
                   : reinterpret_cast<uintptr_t>(pc);
}

std::string FromDebugInfo(const void* pc) {
  Dl_info info;
  if (!pc || !dladdr(pc, &info) || !info.dli_fname) return "?";
  // A return address: the call is before it.
  const size_t offset = static_cast<const char*>(pc) - static_cast<const char*>(info.dli_fbase) - 1;
  char command[600];
  snprintf(command, sizeof command, "addr2line -s -e '%s' 0x%zx 2>/dev/null", info.dli_fname,
           offset);
  char line[256] = "";
  if (FILE* f = popen(command, "r")) {
    if (!fgets(line, sizeof line, f)) line[0] = 0;
    pclose(f);
  }
  line[strcspn(line, "\n")] = 0;
  if (char* discriminator = strstr(line, " (disc")) *discriminator = 0;
  if (line[0] != 0 && line[0] != '?') return line;
  snprintf(line, sizeof line, "%s+0x%zx", info.dli_sname ? info.dli_sname : "?", offset);
  return line;
}

}  // namespace

uint32_t PlaceId(Site site, const void* pc) {
  const uint64_t key = Key(site, pc);
  // The last answers of this thread: most accesses come from a few places.
  struct Recent {
    uint64_t key = 0;
    uint32_t id = 0;
  };
  static thread_local const auto recent = std::make_unique<std::array<Recent, 256>>();
  Recent& r = (*recent)[(key ^ key >> 11) % 256];
  if (r.key == key && r.id != 0) return r.id;
  Table& table = Places();
  std::lock_guard lock(table.mu);
  const auto [it, added] = table.ids.try_emplace(key, static_cast<uint32_t>(table.places.size()));
  if (added) table.places.push_back({site, pc});
  r = {key, it->second};
  return r.id;
}

std::string PlaceName(uint32_t place) {
  Table& table = Places();
  std::lock_guard lock(table.mu);
  std::string& name = table.names[place];
  if (!name.empty()) return name;
  const Place& p = table.places[place];
  if (p.site.file) {
    const char* slash = strrchr(p.site.file, '/');
    name = std::string(slash ? slash + 1 : p.site.file) + ":" + std::to_string(p.site.line);
  } else {
    name = FromDebugInfo(p.pc);
  }
  return name;
}

}  // namespace lapidary::simt
