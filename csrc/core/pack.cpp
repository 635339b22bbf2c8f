#include "core/pack.h"

#include <algorithm>
#include <cstring>

#include "core/scalar.h"

namespace calibit {
namespace {

// Calls f(tile, row, group, chunk_row, scale_at, zero_at): where the 32-bit words of one row of one
// group lie (word w of chunk c at chunk_row + (c * bits + w) * stride bytes), and its scale and
// zero.
struct Place {
  std::int64_t codes, stride, scale, zero;
};

Place place(const WeightSpec& s, std::int64_t n, std::int64_t g) {
  const std::int64_t tile = n / kTileRows, row = n % kTileRows;
  const std::int64_t block = tile / kBlockTiles, count = block_tiles(s, block);
  const std::int64_t lane = tile % kBlockTiles * kTileRows + row;
  const std::int64_t start =
      block * kBlockTiles * tile_bytes(s) + g * count * group_bytes(s, s.group);
  const std::int64_t scales = start + ceil_div(group_length(s, g), kChunk) * count * chunk_bytes(s);
  const std::int64_t zeros = scales + count * kTileRows * scale_bytes(s.scale);
  return {start + lane * 4, count * kTileRows * 4, scales + lane * scale_bytes(s.scale),
          zeros + lane * zero_bytes(s.zero)};
}

std::int64_t tile_grain(const WeightSpec& s) {
  return std::max<std::int64_t>(1, (1 << 15) / std::max<std::int64_t>(s.k * kTileRows, 1));
}

}  // namespace

void pack_weight(const CanonicalWeight& w, std::uint8_t* out, ParallelFor loop) {
  const WeightSpec& s = w.spec;
  std::memset(out, 0, static_cast<std::size_t>(packed_bytes(s)));
  const std::int64_t sb = scale_bytes(s.scale), zb = zero_bytes(s.zero), g_count = groups(s);
  parallel(loop, tiles(s), tile_grain(s), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t n = begin * kTileRows; n < std::min(end * kTileRows, s.n); ++n)
      for (std::int64_t g = 0; g < g_count; ++g) {
        const Place p = place(s, n, g);
        const std::int64_t i = n * g_count + g;
        std::memcpy(out + p.scale, static_cast<const std::uint8_t*>(w.scales) + i * sb, sb);
        if (zb) std::memcpy(out + p.zero, static_cast<const std::uint8_t*>(w.zeros) + i * zb, zb);
        const std::uint8_t* row = w.codes + n * row_bytes(s);
        for (std::int64_t j = 0; j < group_length(s, g); ++j) {
          const std::int64_t at = j % kChunk * s.bits;
          std::uint8_t* word = out + p.codes + (j / kChunk * s.bits + at / 32) * p.stride;
          const std::uint64_t code = std::uint64_t{get_code(row, g * s.group + j, s.bits)}
                                     << at % 32;
          std::uint32_t lo;
          std::memcpy(&lo, word, 4);
          lo |= static_cast<std::uint32_t>(code);
          std::memcpy(word, &lo, 4);
          if (at % 32 + s.bits > 32) {
            const auto hi = static_cast<std::uint32_t>(code >> 32);
            std::memcpy(word + p.stride, &hi, 4);
          }
        }
      }
  });
  if (s.scale != ScaleType::nested) return;
  std::uint8_t* tail = out + nested_offset_in(s);
  const std::size_t blocks = ceil_div(s.n * g_count, kNestedBlock);
  std::memcpy(tail, w.nested.scales, blocks * 4);
  std::memcpy(tail + blocks * 4, w.nested.codebook, std::size_t{256} * 4);
  std::memcpy(tail + blocks * 4 + std::size_t{256} * 4, &w.nested.offset, 4);
}

void unpack_weight(const UnpackArgs& a, ParallelFor loop) {
  const WeightSpec& s = a.w.spec;
  const std::int64_t sb = scale_bytes(s.scale), zb = zero_bytes(s.zero), g_count = groups(s);
  const std::uint8_t* in = a.w.data;
  parallel(loop, tiles(s), tile_grain(s), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t n = begin * kTileRows; n < std::min(end * kTileRows, s.n); ++n) {
      std::uint8_t* row = a.codes + n * row_bytes(s);
      std::memset(row, 0, static_cast<std::size_t>(row_bytes(s)));
      for (std::int64_t g = 0; g < g_count; ++g) {
        const Place p = place(s, n, g);
        const std::int64_t i = n * g_count + g;
        std::memcpy(static_cast<std::uint8_t*>(a.scales) + i * sb, in + p.scale, sb);
        if (zb) std::memcpy(static_cast<std::uint8_t*>(a.zeros) + i * zb, in + p.zero, zb);
        for (std::int64_t j = 0; j < group_length(s, g); ++j) {
          const std::int64_t at = j % kChunk * s.bits;
          const std::uint8_t* word = in + p.codes + (j / kChunk * s.bits + at / 32) * p.stride;
          std::uint32_t lo, hi = 0;
          std::memcpy(&lo, word, 4);
          if (at % 32 + s.bits > 32) std::memcpy(&hi, word + p.stride, 4);
          const std::uint64_t both = std::uint64_t{hi} << 32 | lo;
          put_code(row, g * s.group + j, s.bits,
                   static_cast<std::uint32_t>(both >> at % 32) & ((1u << s.bits) - 1));
        }
      }
    }
  });
  if (s.scale != ScaleType::nested) return;
  const Nested nested = nested_of(s, in);
  std::memcpy(a.nested_scales, nested.scales, ceil_div(s.n * g_count, kNestedBlock) * 4);
  std::memcpy(a.nested_codebook, nested.codebook, std::size_t{256} * 4);
  *a.nested_offset = nested.offset;
}

Nested nested_of(const WeightSpec& spec, const std::uint8_t* packed) {
  if (spec.scale != ScaleType::nested || packed == nullptr) return {nullptr, nullptr, 0};
  const auto* scales = reinterpret_cast<const float*>(packed + nested_offset_in(spec));
  const float* codebook = scales + ceil_div(spec.n * groups(spec), kNestedBlock);
  return {scales, codebook, codebook[256]};
}

}  // namespace calibit
