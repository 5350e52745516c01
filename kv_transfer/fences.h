// The checks that keep one request's state out of another's memory, each with a switch. All are on
// in every real configuration; tests switch one off at a time to prove that a test turns red
// without it.
#ifndef HYSERVE_KV_TRANSFER_FENCES_H_
#define HYSERVE_KV_TRANSFER_FENCES_H_

namespace hyserve::kv_transfer {

struct Fences {
  bool checksum = true;     // verify the CRC32C of every data message
  bool epoch = true;        // refuse another attempt's messages
  bool generation = true;   // refuse messages for an earlier pull of the same transfer
  bool incarnation = true;  // refuse messages of or for another process
  bool layout = true;       // refuse a peer whose layout differs
  bool quiesce = true;      // give memory back only when nothing can touch it any more
};

}  // namespace hyserve::kv_transfer

#endif  // HYSERVE_KV_TRANSFER_FENCES_H_
