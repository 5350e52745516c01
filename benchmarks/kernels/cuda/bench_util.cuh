// What the GPU benchmarks share: random operands, timing, a device copy to compare with, and rows
// of results. A benchmark is one program: it checks, then times, prints a line per case and appends
// JSON rows to the file named by --json.
#ifndef HYSERVE_BENCHMARKS_KERNELS_CUDA_BENCH_UTIL_CUH_
#define HYSERVE_BENCHMARKS_KERNELS_CUDA_BENCH_UTIL_CUH_

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#define BENCH_CHECK(call)                                                                       \
  do {                                                                                          \
    const auto bench_check_result = (call);                                                     \
    if (static_cast<int>(bench_check_result) != 0) {                                            \
      std::printf("%s:%d: %s gave %d (%s)\n", __FILE__, __LINE__, #call,                        \
                  static_cast<int>(bench_check_result), cudaGetErrorString(cudaGetLastError())); \
      std::exit(1);                                                                             \
    }                                                                                           \
  } while (0)

namespace hyserve::bench {

// Device memory for the life of the program.
template <typename T>
T* DeviceArray(size_t count) {
  void* data = nullptr;
  BENCH_CHECK(cudaMalloc(&data, std::max<size_t>(count, 1) * sizeof(T)));
  return static_cast<T*>(data);
}

__device__ inline uint32_t Mix(uint64_t i) {
  i = (i ^ (i >> 30)) * 0xbf58476d1ce4e5b9ull;
  i = (i ^ (i >> 27)) * 0x94d049bb133111ebull;
  return static_cast<uint32_t>(i ^ (i >> 31));
}

// Sum of three uniform numbers, of deviation `scale`.
__device__ inline float RandomAt(uint64_t i, uint32_t seed, float scale) {
  float sum = 0;
  for (int part = 0; part < 3; ++part) {
    const uint32_t bits = Mix((i * 3 + part + 1) * 0x9e3779b97f4a7c15ull + seed);
    sum += static_cast<float>(bits) * 0x1p-31f - 1.0f;
  }
  return sum * scale;
}

template <typename T>
__global__ void FillKernel(T* data, size_t count, uint32_t seed, float scale) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < count;
       i += size_t{gridDim.x} * blockDim.x) {
    data[i] = static_cast<T>(RandomAt(i, seed, scale));
  }
}

template <typename T>
void FillRandom(T* data, size_t count, uint32_t seed, float scale) {
  FillKernel<<<1056, 256>>>(data, count, seed, scale);
  BENCH_CHECK(cudaGetLastError());
}

// Time of `body`, which enqueues on `stream`, in us: the median of `repeats` runs after two for
// warming up.
inline double MedianMicroseconds(cudaStream_t stream, int repeats,
                                 const std::function<void()>& body) {
  cudaEvent_t begin, end;
  BENCH_CHECK(cudaEventCreate(&begin));
  BENCH_CHECK(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < repeats + 2; ++i) {
    BENCH_CHECK(cudaEventRecord(begin, stream));
    body();
    BENCH_CHECK(cudaEventRecord(end, stream));
    BENCH_CHECK(cudaEventSynchronize(end));
    float ms = 0;
    BENCH_CHECK(cudaEventElapsedTime(&ms, begin, end));
    if (i >= 2) times.push_back(ms);
  }
  BENCH_CHECK(cudaEventDestroy(begin));
  BENCH_CHECK(cudaEventDestroy(end));
  std::sort(times.begin(), times.end());
  return times[times.size() / 2] * 1e3;
}

// Time of one of `launches` calls of `launch(i)`, in us, as replays of a graph of all of them.
inline double MicrosecondsEach(cudaStream_t stream, int launches,
                               const std::function<void(int)>& launch, int repeats = 11) {
  cudaGraph_t graph;
  cudaGraphExec_t replay;
  BENCH_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < launches; ++i) launch(i);
  BENCH_CHECK(cudaStreamEndCapture(stream, &graph));
  BENCH_CHECK(cudaGraphInstantiate(&replay, graph, 0));
  const double us = MedianMicroseconds(
      stream, repeats, [&] { BENCH_CHECK(cudaGraphLaunch(replay, stream)); });
  BENCH_CHECK(cudaGraphExecDestroy(replay));
  BENCH_CHECK(cudaGraphDestroy(graph));
  return us / launches;
}

// Bytes read and written per second by a device-to-device copy of 2 GiB.
inline double CopyBytesPerSecond(cudaStream_t stream) {
  constexpr size_t kBytes = size_t{1} << 31;
  char* from = DeviceArray<char>(kBytes);
  char* to = DeviceArray<char>(kBytes);
  FillRandom(reinterpret_cast<float*>(from), kBytes / 4, 1, 1.0f);
  // Outside a graph: inside one the slower copy engines do it.
  const double us = MedianMicroseconds(stream, 7, [&] {
    BENCH_CHECK(cudaMemcpyAsync(to, from, kBytes, cudaMemcpyDeviceToDevice, stream));
  });
  BENCH_CHECK(cudaFree(from));
  BENCH_CHECK(cudaFree(to));
  return 2.0 * kBytes / us * 1e6;
}

template <typename T>
std::vector<T> Download(const T* data, size_t count) {
  std::vector<T> values(count);
  BENCH_CHECK(cudaMemcpy(values.data(), data, count * sizeof(T), cudaMemcpyDeviceToHost));
  return values;
}

// |a - b| / |b| in the 2-norm; NaN if anything in a is.
inline double RelativeError(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    difference += (static_cast<double>(a[i]) - b[i]) * (static_cast<double>(a[i]) - b[i]);
    norm += static_cast<double>(b[i]) * b[i];
  }
  return std::sqrt(difference / std::max(norm, 1e-300));
}

// Appends rows of JSON to a file, or nothing without one.
class JsonRows {
 public:
  JsonRows(int argc, char** argv) {
    command_ = argv[0];
    command_.erase(0, command_.rfind('/') + 1);
    for (int i = 1; i < argc; ++i) {
      const std::string word = argv[i];
      command_.append(" ").append(word);
      if (i + 1 < argc && word == "--json") Open(argv[i + 1]);
      if (i + 1 < argc && word == "--commit") commit_ = argv[i + 1];
    }
    cudaDeviceProp properties;
    BENCH_CHECK(cudaGetDeviceProperties(&properties, 0));
    gpu_ = properties.name;
    BENCH_CHECK(cudaDriverGetVersion(&driver_));
  }
  ~JsonRows() {
    if (file_ != nullptr) std::fclose(file_);
  }
  const std::string& gpu() const { return gpu_; }
  // fields: ready JSON members, e.g. "\"rows\": 1, \"us\": 8.1".
  void Add(const std::string& op, const std::string& fields) {
    if (file_ == nullptr) return;
    std::fprintf(file_,
                 "{\"op\": \"%s\", %s, \"machine\": \"%s\", \"cuda_driver\": %d, "
                 "\"commit\": \"%s\", \"command\": \"%s\"}\n",
                 op.c_str(), fields.c_str(), gpu_.c_str(), driver_, commit_.c_str(),
                 command_.c_str());
  }

 private:
  void Open(const char* path) {
    file_ = std::fopen(path, "a");
    if (file_ != nullptr) return;
    std::perror(path);
    std::exit(1);
  }

  std::FILE* file_ = nullptr;
  std::string gpu_;
  std::string commit_ = "unknown";
  std::string command_;
  int driver_ = 0;
};

}  // namespace hyserve::bench

#endif  // HYSERVE_BENCHMARKS_KERNELS_CUDA_BENCH_UTIL_CUH_
