// Steps of many shapes within given limits, the largest among them: what reserved workspaces must
// hold.
#ifndef HYSERVE_TESTS_ENGINE_MODEL_STEPS_WITHIN_H_
#define HYSERVE_TESTS_ENGINE_MODEL_STEPS_WITHIN_H_

#include "engine/attention/kv_pool.h"
#include "engine/model/config.h"
#include "engine/model/model.h"

namespace hyserve::model {

// "tiny" with a mixture of experts in all layers but the first, and heads of unlike sizes.
ModelConfig TinyExperts();

// Runs them, each `times` times; fails the test when one fails. All pages of all sequences are
// block 0 of the pool, which needs limits.num_sequences slabs.
void RunStepsWithin(const StepLimits& limits, int times, Model& model, attention::KvPool& pool);

}  // namespace hyserve::model

#endif  // HYSERVE_TESTS_ENGINE_MODEL_STEPS_WITHIN_H_
