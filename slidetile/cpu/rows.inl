// Rows between the caller's memory and vectors of floats, for every set: included after load_storage and store_storage.

inline int64_t storage_bytes(Storage storage) { return storage == Storage::kF32 ? 4 : 2; }

inline void copy_bytes(void* to, const void* from, int64_t bytes) { __builtin_memcpy(to, from, static_cast<unsigned long>(bytes)); }

// Asks for a row of the caller's memory some rows before it is read: rows are too short for the processor to see them coming.
inline void prefetch_row(const char* row, Storage storage, int64_t head_dim) {
  const int64_t bytes = head_dim * storage_bytes(storage);
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(row + at, 0, 3);
}

// The last `count` < kLanes elements of a row: nothing past them is read or written.
[[gnu::noinline, maybe_unused]] Float load_tail(const char* from, Storage storage, int64_t count) {
  alignas(64) char whole[64] = {};
  copy_bytes(whole, from, count * storage_bytes(storage));
  return load_storage(whole, storage);
}

[[gnu::noinline]] void store_tail(char* to, Storage storage, Float value, int64_t count) {
  alignas(64) char whole[64];
  store_storage(whole, storage, value);
  copy_bytes(to, whole, count * storage_bytes(storage));
}

void store_row(char* to, Storage storage, const float* from, int64_t head_dim) {
  const int64_t bytes = storage_bytes(storage);
  int64_t d = 0;
  for (; d + kLanes <= head_dim; d += kLanes) store_storage(to + d * bytes, storage, load(from + d));
  if (d < head_dim) store_tail(to + d * bytes, storage, load(from + d), head_dim - d);
}
