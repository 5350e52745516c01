// How a data message travels between the memories of two processes, and how much went which way.
#ifndef HYSERVE_KV_TRANSFER_DATA_PATH_H_
#define HYSERVE_KV_TRANSFER_DATA_PATH_H_

#include <cstdint>
#include <string>
#include <string_view>

#include "kv_transfer/stats.h"

namespace hyserve::kv_transfer {

enum class DataPath : uint8_t {
  kUnknown,  // not decided yet
  kHost,     // host memory on the wire
  kDirect,   // device memory on the wire, no copy of ours and none through the host
  kStaged,   // device memory through pinned host memory of ours
  kRefused,  // no direct path, and staging was forbidden
};
inline constexpr int kNumDataPaths = 5;

// "unknown", "host", "direct", "staged", "refused": a metric's label.
constexpr std::string_view Name(DataPath path) {
  constexpr std::string_view kNames[] = {"unknown", "host", "direct", "staged", "refused"};
  return kNames[static_cast<int>(path)];
}

// What an endpoint's check of its path found, as seen by the sending side.
struct PathReport {
  DataPath path = DataPath::kUnknown;
  double bytes_per_second = 0;  // of the direct path, as measured; 0: not measured
  std::string connection;       // Transport::EndpointDescription
  std::string reason;           // why it is not direct; empty when it is
};

// Payload bytes by path. Cumulative.
struct PathCounters {
  Counter sent_bytes[kNumDataPaths];
  Counter received_bytes[kNumDataPaths];
  Counter endpoints[kNumDataPaths];  // checked endpoints, by what was chosen

  Counter& sent(DataPath path) { return sent_bytes[static_cast<int>(path)]; }
  Counter& received(DataPath path) { return received_bytes[static_cast<int>(path)]; }
};

}  // namespace hyserve::kv_transfer

#endif  // HYSERVE_KV_TRANSFER_DATA_PATH_H_
