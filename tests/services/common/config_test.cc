#include "services/common/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace hyserve::common {
namespace {

using ::testing::HasSubstr;

constexpr char kSmall[] =
    "model: {path: models/demo/}\n"
    "prefill: {replicas: 2, listen: 127.0.0.1:8480, kv_memory: 64MiB}\n"
    "decode:\n"
    "  - {name: d, listen: 127.0.0.1:8490}\n"
    "  - {metrics_listen: 127.0.0.1:9500}\n";

std::string Problems(const std::string& yaml) {
  const auto config = ParseConfig(yaml, "c");
  EXPECT_FALSE(config.ok()) << yaml;
  return std::string(config.status().message());
}

TEST(Config, ReplicasAndListsBecomeWorkers) {
  const auto config = ParseConfig(kSmall, "c");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->model.name, "demo");
  ASSERT_EQ(config->workers.size(), 4u);
  EXPECT_EQ(config->workers[0].name, "prefill-0");
  EXPECT_EQ(config->workers[0].listen, "127.0.0.1:8480");
  EXPECT_EQ(config->workers[1].name, "prefill-1");
  EXPECT_EQ(config->workers[1].listen, "127.0.0.1:8481");
  EXPECT_EQ(config->workers[1].kv_memory_bytes, 64 << 20);
  EXPECT_EQ(config->workers[2].name, "d");
  EXPECT_EQ(config->workers[2].role, "decode");
  EXPECT_EQ(config->workers[3].name, "decode-1");
  EXPECT_EQ(config->router.listen, "127.0.0.1:8470");
}

TEST(Config, FindsAWorkerByRoleAndName) {
  const auto config = ParseConfig(kSmall, "c");
  ASSERT_TRUE(config.ok());
  EXPECT_EQ(config->FindWorker("decode", "d")->listen, "127.0.0.1:8490");
  EXPECT_EQ(config->FindWorker("", "prefill-1")->role, "prefill");
  EXPECT_THAT(std::string(config->FindWorker("prefill", "").status().message()),
              HasSubstr("there are: prefill-0, prefill-1"));
  EXPECT_EQ(config->FindWorker("prefill", "d").status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(config->FindWorker("monolithic", "").status().message()),
              HasSubstr("there are none"));
}

TEST(Config, ChecksRulesBetweenFields) {
  EXPECT_THAT(Problems("model: {path: m, random_preset: tiny}\ndecode: {role: monolithic}\n"),
              HasSubstr("exactly one of path and random_preset"));
  EXPECT_THAT(Problems("decode: {role: monolithic}\n"), HasSubstr("model: missing"));
  EXPECT_THAT(Problems("model: {path: m}\ndecode: {}\n"), HasSubstr("at least one prefill worker"));
  EXPECT_THAT(Problems("model: {path: m}\nprefill: {}\n"), HasSubstr("at least one decode worker"));
  EXPECT_THAT(Problems("model: {path: m}\n"), HasSubstr("no worker at all"));
  const std::string base = "model: {path: m}\ndecode: {role: monolithic}\n";
  ASSERT_TRUE(ParseConfig(base, "c").ok());
  EXPECT_EQ(Problems(base + "transfer:\n  lease: 4s\n"),
            "c:4:10: transfer.lease: must be at least 3 x lease_renew (6s); got 4s");
  EXPECT_THAT(Problems(base + "transfer: {port_first: 7000, port_last: 6000}\n"),
              HasSubstr("transfer.port_last"));
  EXPECT_THAT(Problems(base + "limits: {drain_soft: 2min, drain_hard: 1min}\n"),
              HasSubstr("limits.drain_soft"));
  EXPECT_THAT(Problems(base + "limits: {default_max_tokens: 10, max_tokens: 5}\n"),
              HasSubstr("limits.default_max_tokens"));
  EXPECT_THAT(Problems("model: {path: m}\ndecode:\n  - {role: monolithic, name: x}\n"
                       "  - {role: monolithic, name: x}\n"),
              HasSubstr("two workers are called \"x\""));
  EXPECT_THAT(Problems("model: {path: m}\ndecode: {role: monolithic, chunk_tokens: 100}\n"),
              HasSubstr("decode.chunk_tokens: must be a multiple of 64"));
  EXPECT_THAT(Problems(base + "routr: {}\n"), HasSubstr("did you mean \"router\"?"));
}

TEST(Config, DeviceKeys) {
  const std::string base = "model: {path: m}\ndecode:\n  role: monolithic\n";
  const auto worker = [&base](const std::string& keys) {
    const auto config = ParseConfig(base + keys, "c");
    EXPECT_TRUE(config.ok()) << config.status();
    return config.ok() ? config->workers.at(0) : WorkerSettings();
  };
  EXPECT_EQ(worker("").device, "cpu");
  EXPECT_EQ(worker("").isa, "auto");
  EXPECT_EQ(worker("  isa: avx512_bf16\n").isa, "avx512_bf16");
  EXPECT_EQ(worker("  device: cuda\n").device, "cuda");
  EXPECT_EQ(worker("  device: cuda:12\n").device, "cuda:12");
  EXPECT_EQ(worker("  device: cuda\n").kv_memory_share, 0);
  EXPECT_EQ(worker("  device: cuda\n  kv_memory: 2GiB\n").kv_memory_bytes, int64_t{2} << 30);
  EXPECT_EQ(worker("  device: cuda:0\n  kv_memory: auto\n").kv_memory_share, 0.9);
  EXPECT_EQ(worker("  device: cuda:0\n  kv_memory: 12.5%\n").kv_memory_share, 0.125);

  EXPECT_EQ(Problems(base + "  device: gpu\n"),
            "c:4:11: decode.device: must be cpu, cuda or cuda:N; got \"gpu\"; did you mean "
            "\"cuda:0\"?");
  for (const char* device : {"cuda:", "cuda:x", "cuda:01", "cuda:-1", "cuda: 1", "CPU", "tpu"}) {
    EXPECT_THAT(Problems(base + "  device: \"" + device + "\"\n"),
                HasSubstr("c:4:11: decode.device"));
  }
  EXPECT_EQ(Problems(base + "  isa: avx-2\n"),
            "c:4:8: decode.isa: must be one of auto, avx512_bf16, avx512, avx2, scalar; got "
            "\"avx-2\"; did you mean \"avx2\"?");
  EXPECT_EQ(Problems(base + "  device: cuda\n  isa: avx2\n"),
            "c:5:8: decode.isa: is of the device cpu only");
  EXPECT_EQ(Problems(base + "  kv_memory: auto\n"),
            "c:4:14: decode.kv_memory: auto and percentages need a device cuda; give a size "
            "(1GiB)");
  for (const char* memory : {"0%", "101%", "'%'", "nan%", "-5%"}) {
    EXPECT_THAT(Problems(base + "  device: cuda\n  kv_memory: " + memory + "\n"),
                HasSubstr("decode.kv_memory: must be between 1% and 100%"))
        << memory;
  }
  EXPECT_THAT(Problems(base + "  device: cuda\n  kv_memory: 0.9\n"),
              HasSubstr("must be a size with a unit"));
  EXPECT_THAT(Problems(base + "  devise: cuda\n"), HasSubstr("did you mean \"device\"?"));
}

TEST(ServerFlags, AreStrict) {
  const auto parse = [](std::vector<const char*> words) {
    words.insert(words.begin(), "prog");
    return ParseServerFlags(static_cast<int>(words.size()), const_cast<char**>(words.data()));
  };
  const auto flags = parse({"--config", "a.yaml", "--name=w", "--check-config"});
  ASSERT_TRUE(flags.ok());
  EXPECT_EQ(flags->config_path, "a.yaml");
  EXPECT_EQ(flags->name, "w");
  EXPECT_TRUE(flags->check_config);
  EXPECT_FALSE(parse({}).ok());
  EXPECT_FALSE(parse({"--config"}).ok());
  EXPECT_FALSE(parse({"--config", "--name"}).ok());
  EXPECT_FALSE(parse({"--config=a", "--bogus"}).ok());
  EXPECT_TRUE(parse({"--help"})->help);
}

}  // namespace
}  // namespace hyserve::common
