// Folding: BLAKE2b (Saarinen, Aumasson: "The BLAKE2 cryptographic hash and message authentication code", RFC 7693),
// without a key of its own, and with a digest of 8 bytes.
#include <xinit/key.h>

#include <algorithm>
#include <string>

namespace xinit {
namespace {

constexpr uint64_t kInitial[8] = {0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b, 0xa54ff53a5f1d36f1,
                                  0x510e527fade682d1, 0x9b05688c2b3e6c1f, 0x1f83d9abfb41bd6b, 0x5be0cd19137e2179};
constexpr int kRoundsOfBlake2b = 12;
constexpr size_t kBlock = 128;
constexpr uint8_t kOrder[10][16] = {  // of a block's words in a round
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4}, {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
    {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13}, {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
    {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11}, {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
    {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5}, {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0}};

constexpr uint64_t rotate_right(uint64_t x, int bits) { return x >> bits | x << (64 - bits); }

void mix(uint64_t& a, uint64_t& b, uint64_t& c, uint64_t& d, uint64_t x, uint64_t y) {
  a += b + x;
  d = rotate_right(d ^ a, 32);
  c += d;
  b = rotate_right(b ^ c, 24);
  a += b + y;
  d = rotate_right(d ^ a, 16);
  c += d;
  b = rotate_right(b ^ c, 63);
}

void compress(uint64_t (&state)[8], const uint64_t (&words)[16], uint64_t bytes_so_far, bool last) {
  uint64_t v[16];
  std::copy_n(state, 8, v);
  std::copy_n(kInitial, 8, v + 8);
  v[12] ^= bytes_so_far;
  if (last) v[14] = ~v[14];
#pragma GCC unroll 12
  for (int round = 0; round < kRoundsOfBlake2b; ++round) {
    const uint8_t (&order)[16] = kOrder[round % 10];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) mix(v[i], v[4 + i], v[8 + i], v[12 + i], words[order[2 * i]], words[order[2 * i + 1]]);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
      mix(v[i], v[4 + (i + 1) % 4], v[8 + (i + 2) % 4], v[12 + (i + 3) % 4], words[order[8 + 2 * i]],
          words[order[9 + 2 * i]]);
  }
  for (int i = 0; i < 8; ++i) state[i] ^= v[i] ^ v[8 + i];
}

// Words as eight bytes each, the lowest first.
void store(uint64_t word, char* bytes) {
  for (int i = 0; i < 8; ++i) bytes[i] = static_cast<char>(word >> 8 * i);
}
uint64_t load(const char* bytes) {
  uint64_t word = 0;
  for (int i = 0; i < 8; ++i) word |= static_cast<uint64_t>(static_cast<uint8_t>(bytes[i])) << 8 * i;
  return word;
}

uint64_t digest(std::string_view message) {
  uint64_t state[8];
  std::copy_n(kInitial, 8, state);
  state[0] ^= 0x01010000 ^ sizeof(state[0]);  // depth and fan-out of a tree of one leaf; the digest's bytes
  for (size_t end = 0;;) {
    char block[kBlock] = {};
    end += message.copy(block, kBlock, end);
    uint64_t words[16];
    for (int i = 0; i < 16; ++i) words[i] = load(block + 8 * i);
    compress(state, words, end, end == message.size());
    if (end == message.size()) return state[0];
  }
}

Key folded(Key key, char tag, std::string_view payload) {
  char head[17];
  store(key.seed, head);
  store(key.stream, head + 8);
  head[16] = tag;
  return {key.seed, digest(std::string(head, sizeof head).append(payload))};
}

}  // namespace

Key Key::fold_in(std::string_view name) const { return folded(*this, 's', name); }

Key Key::fold_in(uint64_t number) const {
  char bytes[8];
  store(number, bytes);
  return folded(*this, 'i', {bytes, sizeof bytes});
}

}  // namespace xinit
