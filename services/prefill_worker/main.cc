// hyserve-prefill: computes prompts and offers the hand-off.
#include "services/prefill_worker/prefill_worker.h"
#include "services/worker/worker_main.h"

int main(int argc, char** argv) {
  using hyserve::prefill_worker::PrefillWorker;
  return hyserve::worker::WorkerMain<PrefillWorker>(argc, argv, "hyserve-prefill", {"prefill"});
}
