// hyserve-decode: takes hand-offs over and generates tokens; or, monolithic, does everything.
#include "services/decode_worker/decode_worker.h"
#include "services/worker/worker_main.h"

int main(int argc, char** argv) {
  using hyserve::decode_worker::DecodeWorker;
  return hyserve::worker::WorkerMain<DecodeWorker>(argc, argv, "hyserve-decode",
                                                   {"decode", "monolithic"});
}
