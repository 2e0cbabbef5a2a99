#include "worker/debug_compare.h"

#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>

#include "gtest/gtest.h"
#include "tests/worker/toy_model.h"

namespace lapidary {
namespace {

RunnerOptions Fp32() {
  RunnerOptions options;
  options.compute = ComputeType::kFp32;
  return options;
}

class DebugCompareTest : public testing::Test {
 protected:
  void TearDown() override { std::remove(file_.c_str()); }
  const std::string file_ = testing::TempDir() + "lapidary_" +
                            testing::UnitTest::GetInstance()->current_test_info()->name() + ".rec";
  const std::vector<TokenId> ids_ = {2, 7, 19, 4, 30, 11, 5, 23, 16, 9, 1, 2, 3, 4, 5, 6, 7, 8};
};

TEST_F(DebugCompareTest, ARunAgreesWithItself) {
  for (const ModelSpec& spec : {ToyA(), ToyB(), ToyG3()}) {
    const auto checkpoint = FillToy(spec);
    ASSERT_TRUE(RecordForward(*checkpoint, Fp32(), ids_, file_).ok());
    const auto report = CompareForward(*checkpoint, Fp32(), file_);
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_EQ(report->first, -1) << report->Format();
    for (const IntermediateDifference& d : report->intermediates) EXPECT_EQ(d.relative_rms, 0);
    EXPECT_NE(report->Format().find("agree"), std::string::npos);
  }
}

TEST_F(DebugCompareTest, FindsTheFirstLayerThatDiffers) {
  const ModelSpec spec = ToyA();
  ASSERT_TRUE(RecordForward(*FillToy(spec), Fp32(), ids_, file_).ok());
  const struct {
    const char* tensor;
    const char* found;
  } kCases[] = {{"layers.2.self_attn.o_proj.weight", "layers.2.attention_output"},
                {"layers.4.mlp.up_proj.weight", "layers.4.mlp"},
                {"layers.1.self_attn.q_proj.weight", "layers.1.qkv"},
                {"layers.1.self_attn.k_norm.weight", "layers.1.attended"},
                {"layers.3.layer_scalar", "layers.3.output"},
                {"per_layer_projection_norm.weight", "ple_inputs"},
                {"norm.weight", "final_norm"}};
  for (const auto& c : kCases) {
    auto changed = FillToy(spec);
    const StoredTensor tensor = *changed->Find(c.tensor);
    std::vector<float> values(tensor.bytes / 4);
    std::memcpy(values.data(), tensor.data, tensor.bytes);
    values[0] += 0.25f;
    changed->Add(c.tensor, tensor.shape, values);
    const auto report = CompareForward(*changed, Fp32(), file_);
    ASSERT_TRUE(report.ok()) << report.status();
    ASSERT_GE(report->first, 0) << c.tensor;
    EXPECT_EQ(report->intermediates[report->first].name, c.found);
    EXPECT_NE(report->Format().find(c.found), std::string::npos);
  }
}

TEST_F(DebugCompareTest, RefusesWhatIsNoRecording) {
  const auto checkpoint = FillToy(ToyB());
  EXPECT_EQ(CompareForward(*checkpoint, Fp32(), file_).status().code(),
            absl::StatusCode::kNotFound);
  std::ofstream(file_) << "something else";
  EXPECT_EQ(CompareForward(*checkpoint, Fp32(), file_).status().code(),
            absl::StatusCode::kInvalidArgument);
  ASSERT_TRUE(RecordForward(*checkpoint, Fp32(), ids_, file_).ok());
  std::string bytes;
  {
    std::ifstream in(file_, std::ios::binary);
    bytes.assign(std::istreambuf_iterator<char>(in), {});
  }
  for (const size_t size : {bytes.size() - 1, bytes.size() / 2, size_t{9}, size_t{100}}) {
    std::ofstream(file_, std::ios::binary) << bytes.substr(0, size);
    EXPECT_EQ(CompareForward(*checkpoint, Fp32(), file_).status().code(),
              absl::StatusCode::kInvalidArgument)
        << size;
  }
  EXPECT_EQ(RecordForward(*checkpoint, Fp32(), {}, file_).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(RecordForward(*checkpoint, Fp32(), {32}, file_).code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace lapidary
