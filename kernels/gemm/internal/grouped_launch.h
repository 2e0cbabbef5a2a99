// The variants behind LaunchGroupedProduct, which has checked the parameters.
#pragma once
#include "kernels/gemm/stream_product_cuda.h"

namespace lapidary {

// 64 or 128 tokens: grouped_tile_product.cu and, with warpgroup products, grouped_wgmma_product.cu.
cudaError_t LaunchGroupedTiles(const GroupedParams& p, int token_tile, const Chip& chip,
                               cudaStream_t stream);
cudaError_t LaunchGroupedWgmma(const GroupedParams& p, cudaStream_t stream);

}  // namespace lapidary
