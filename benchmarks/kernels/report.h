// Repeats, medians and rows of a kernel benchmark.
#ifndef HYSERVE_BENCHMARKS_KERNELS_REPORT_H_
#define HYSERVE_BENCHMARKS_KERNELS_REPORT_H_

#include <fstream>
#include <string>

#include "absl/functional/function_ref.h"

namespace hyserve::bench {

// Seconds of wall time, or of processor time of the process after UseCpuClock().
double Now();
void UseCpuClock();

struct Timing {
  double median_seconds = 0;
  double least_seconds = 0;
};

// One warm-up, then repeats until about `seconds` have passed (at least five).
Timing Measure(double seconds, absl::FunctionRef<void()> body);

// Prints a line and appends a JSON row per result.
class Report {
 public:
  // machine: free text about the processor; rows go to path unless it is empty.
  Report(const std::string& path, std::string commit, std::string machine, int threads);

  void SetCeilings(double gflops, double gb_per_second);
  // operations and bytes of one run; either may be 0. The fraction printed is of the ceiling that
  // binds, that is, of the time that the machine would need at least. gflops: the ceiling of the
  // arithmetic used, if it is not the f32 one.
  void Add(const std::string& name, const Timing& timing, double operations, double bytes,
           double gflops = 0);

 private:
  std::ofstream rows_;
  const std::string commit_;
  const std::string machine_;
  const int threads_;
  double gflops_ = 0;
  double gb_per_second_ = 0;
};

std::string ProcessorName();

}  // namespace hyserve::bench

#endif  // HYSERVE_BENCHMARKS_KERNELS_REPORT_H_
