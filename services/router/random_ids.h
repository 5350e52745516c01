// Unpredictable identifiers, from the kernel's generator. Thread-safe.
#ifndef HYSERVE_SERVICES_ROUTER_RANDOM_IDS_H_
#define HYSERVE_SERVICES_ROUTER_RANDOM_IDS_H_

#include <cstdint>
#include <string>

namespace hyserve::router {

uint64_t RandomWord();
std::string RandomTransferId();  // 16 bytes
std::string RandomRequestId();   // "req-" and 32 hexadecimal digits

}  // namespace hyserve::router

#endif  // HYSERVE_SERVICES_ROUTER_RANDOM_IDS_H_
