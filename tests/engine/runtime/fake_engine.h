// An engine around the fake model, for the tests of this folder.
#ifndef HYSERVE_TESTS_ENGINE_RUNTIME_FAKE_ENGINE_H_
#define HYSERVE_TESTS_ENGINE_RUNTIME_FAKE_ENGINE_H_

#include <gtest/gtest.h>

#include <memory>
#include <utility>

#include "engine/runtime/engine_loop.h"
#include "tests/support/fake_device.h"
#include "tests/support/fake_model.h"

namespace hyserve::runtime {

struct FakeEngineOptions {
  EngineOptions engine;
  int64_t num_blocks = 256;
  bool has_window_layers = true;
  kv_cache::ReuseOrder reuse_order = kv_cache::ReuseOrder::kLifo;
  StepObserver observer = nullptr;
};

struct FakeEngine {
  explicit FakeEngine(FakeEngineOptions options = {}) {
    auto owned = std::make_unique<testing_support::FakeModel>(
        testing_support::FakeModelOptions{.has_window_layers = options.has_window_layers});
    model = owned.get();
    const auto& layout = model->layout();
    const int64_t slabs = options.engine.max_sequences +
                          (options.engine.prefix_cache ? options.engine.snapshot_slabs : 0);
    options.engine.kv_memory_bytes =
        options.num_blocks * static_cast<int64_t>(layout.block_bytes()) +
        slabs * static_cast<int64_t>(layout.slab_bytes);
    auto owned_device = std::make_unique<testing_support::FakeDevice>();
    device = owned_device.get();
    auto made = MakeEngine(options.engine, std::move(owned_device), std::move(owned),
                           std::move(options.observer), options.reuse_order);
    EXPECT_TRUE(made.ok()) << made.status();
    engine = *std::move(made);
  }
  Engine* operator->() { return engine.get(); }
  Engine& operator*() { return *engine; }

  testing_support::FakeModel* model = nullptr;    // owned by the engine
  testing_support::FakeDevice* device = nullptr;  // likewise
  std::unique_ptr<Engine> engine;
};

}  // namespace hyserve::runtime

#endif  // HYSERVE_TESTS_ENGINE_RUNTIME_FAKE_ENGINE_H_
