#include "benchmarks/kernels/report.h"

#include <time.h>

#include <algorithm>
#include <cstdio>
#include <utility>
#include <vector>

namespace hyserve::bench {
namespace {

bool cpu_clock = false;

std::string Escaped(const std::string& text) {
  std::string out;
  for (char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) >= 0x20) out += c;
  }
  return out;
}

}  // namespace

double Now() {
  timespec time;
  clock_gettime(cpu_clock ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

void UseCpuClock() { cpu_clock = true; }

Timing Measure(double seconds, absl::FunctionRef<void()> body) {
  body();
  std::vector<double> times;
  const double end = Now() + seconds;
  while (times.size() < 5 || (Now() < end && times.size() < 10000)) {
    const double begin = Now();
    body();
    times.push_back(Now() - begin);
  }
  std::sort(times.begin(), times.end());
  return {times[times.size() / 2], times.front()};
}

Report::Report(const std::string& path, std::string commit, std::string machine, int threads)
    : commit_(std::move(commit)), machine_(std::move(machine)), threads_(threads) {
  if (!path.empty()) rows_.open(path, std::ios::app);
}

void Report::SetCeilings(double gflops, double gb_per_second) {
  gflops_ = gflops;
  gb_per_second_ = gb_per_second;
  std::printf("%s, %d threads: %.1f GFLOP/s f32, %.1f GB/s read\n", machine_.c_str(), threads_,
              gflops, gb_per_second);
}

void Report::Add(const std::string& name, const Timing& timing, double operations, double bytes,
                 double gflops) {
  const double peak = gflops > 0 ? gflops : gflops_;
  const double floor_seconds =
      std::max(operations / (peak * 1e9), bytes / (gb_per_second_ * 1e9));
  const double fraction = floor_seconds / timing.median_seconds;
  std::printf("%-44s %9.3f ms (least %9.3f) %8.1f GFLOP/s %7.1f GB/s %5.0f %% of ceiling\n",
              name.c_str(), timing.median_seconds * 1e3, timing.least_seconds * 1e3,
              operations / timing.median_seconds / 1e9, bytes / timing.median_seconds / 1e9,
              fraction * 100);
  std::fflush(stdout);
  if (!rows_.is_open()) return;
  char numbers[512];
  std::snprintf(numbers, sizeof(numbers),
                "\"threads\": %d, \"median_ms\": %.4f, \"least_ms\": %.4f, \"gflops\": %.1f, "
                "\"gb_per_s\": %.2f, \"ceiling_gflops\": %.1f, \"ceiling_gb_per_s\": %.1f, "
                "\"fraction_of_ceiling\": %.3f",
                threads_, timing.median_seconds * 1e3, timing.least_seconds * 1e3,
                operations / timing.median_seconds / 1e9, bytes / timing.median_seconds / 1e9,
                peak, gb_per_second_, fraction);
  rows_ << "{\"bench\": \"kernels\", \"name\": \"" << Escaped(name) << "\", \"commit\": \""
        << Escaped(commit_) << "\", \"machine\": \"" << Escaped(machine_) << "\", " << numbers
        << "}" << std::endl;
}

std::string ProcessorName() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    const size_t colon = line.find(": ");
    if (line.rfind("model name", 0) == 0 && colon != std::string::npos) {
      return line.substr(colon + 2);
    }
  }
  return "unknown processor";
}

}  // namespace hyserve::bench
