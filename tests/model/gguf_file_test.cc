// The GGUF container: typed metadata, the tensor directory, and files that lie.
#include "model/gguf_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <string_view>

#include "tests/model/checkpoint_files.h"

namespace lapidary {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

absl::StatusOr<std::unique_ptr<GgufFile>> Open(const std::string& bytes) {
  const TempFolder folder;
  return GgufFile::Open(folder.Write("some.gguf", bytes));
}
std::string Error(const std::string& bytes) {
  const auto opened = Open(bytes);
  if (opened.ok()) return "it opened";
  EXPECT_EQ(opened.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(opened.status().message()), HasSubstr("some.gguf"));
  return std::string(opened.status().message());
}
template <class T>
std::string Bytes(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}

TEST(GgufFile, ReadsEveryTypeOfMetadata) {
  const std::string bytes = GgufBuilder()
                                .Raw("u8", 0, Bytes<uint8_t>(200))
                                .Raw("i8", 1, Bytes<int8_t>(-3))
                                .Raw("u16", 2, Bytes<uint16_t>(60000))
                                .Raw("i16", 3, Bytes<int16_t>(-30000))
                                .U32("u32", 4000000000u)
                                .Raw("i32", 5, Bytes<int32_t>(-5))
                                .F32("f32", 1.5f)
                                .Raw("bool", 7, Bytes<uint8_t>(1))
                                .String("string", "text")
                                .Raw("u64", 10, Bytes<uint64_t>(1ull << 40))
                                .Raw("too large", 10, Bytes<uint64_t>(~0ull))
                                .Raw("i64", 11, Bytes<int64_t>(-(1ll << 40)))
                                .Raw("f64", 12, Bytes<double>(0.1))
                                .U32s("numbers", {1, 2, 3})
                                .Bools("bools", {true, false})
                                .Strings("strings", {"", "a", "bc"})
                                .Build(2);
  const auto opened = Open(bytes);
  ASSERT_TRUE(opened.ok()) << opened.status();
  const GgufFile& file = **opened;
  EXPECT_EQ(*file.Int("u8"), 200);
  EXPECT_EQ(*file.Int("i8"), -3);
  EXPECT_EQ(*file.Int("u16"), 60000);
  EXPECT_EQ(*file.Int("i16"), -30000);
  EXPECT_EQ(*file.Int("u32"), 4000000000);
  EXPECT_EQ(*file.Int("i32"), -5);
  EXPECT_EQ(*file.Int("u64"), int64_t{1} << 40);
  EXPECT_EQ(*file.Int("i64"), -(int64_t{1} << 40));
  EXPECT_EQ(*file.Float("f32"), 1.5);
  EXPECT_EQ(*file.Float("f64"), 0.1);
  EXPECT_EQ(*file.Float("u8"), 200.0);
  EXPECT_EQ(*file.Bool("bool"), true);
  EXPECT_EQ(*file.String("string"), "text");
  EXPECT_THAT(*file.Ints("numbers"), ElementsAre(1, 2, 3));
  EXPECT_THAT(*file.Ints("u8"), ElementsAre(200));
  EXPECT_THAT(*file.Ints("bools"), ElementsAre(1, 0));
  EXPECT_THAT(*file.Floats("numbers"), ElementsAre(1.0f, 2.0f, 3.0f));
  EXPECT_THAT(*file.Strings("strings"), ElementsAre("", "a", "bc"));
  EXPECT_EQ(*file.IntOr("absent", 7), 7);
  EXPECT_TRUE(file.IsArray("numbers"));
  EXPECT_FALSE(file.IsArray("u8"));

  EXPECT_EQ(file.Int("absent").status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(file.Int("string").status().ToString(),
              HasSubstr("'string' is a single string, expected an integer"));
  EXPECT_FALSE(file.Int("too large").ok());
  EXPECT_FALSE(file.Int("f32").ok());
  EXPECT_FALSE(file.Int("numbers").ok());
  EXPECT_FALSE(file.String("strings").ok());
  EXPECT_FALSE(file.Ints("strings").ok());
  EXPECT_FALSE(file.Floats("string").ok());
  EXPECT_FALSE(file.Strings("numbers").ok());
  EXPECT_FALSE(file.Bool("u8").ok());
  EXPECT_FALSE(file.IntOr("string", 7).ok());
}

TEST(GgufFile, ReadsTheDirectory) {
  const TensorToStore a{"a", {3, 64}, DType::kQ8_0}, b{"b", {5}, DType::kF16};
  const auto opened = Open(GgufBuilder().Tensor(a).Tensor(b).Build());
  ASSERT_TRUE(opened.ok()) << opened.status();
  const GgufTensor* const found = (*opened)->FindTensor("a");
  ASSERT_NE(found, nullptr);
  EXPECT_THAT(found->shape, ElementsAre(3, 64));
  EXPECT_EQ(found->dtype, DType::kQ8_0);
  EXPECT_EQ(found->bytes, 3 * 2 * 34);
  EXPECT_EQ(std::memcmp(found->data, a.Content().data(), 3 * 2 * 34), 0);
  EXPECT_EQ((*opened)->FindTensor("b")->bytes, 10);
  EXPECT_EQ((*opened)->FindTensor("c"), nullptr);
}

TEST(GgufFile, RefusesWhatIsNotOne) {
  EXPECT_THAT(Error("safetensors?"), HasSubstr("does not begin with \"GGUF\""));
  EXPECT_THAT(Error("GG"), HasSubstr("truncated"));
  EXPECT_THAT(Error(GgufBuilder().Build(1)), HasSubstr("has GGUF version 1; versions 2 and 3"));
  EXPECT_THAT(Error(GgufBuilder().Build(0x03000000)), HasSubstr("big-endian"));
  const TempFolder folder;
  EXPECT_EQ(GgufFile::Open(folder.path() + "/absent").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(GgufFile::Open(folder.path()).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(GgufFile::Open(folder.Write("empty", "")).ok());
}

TEST(GgufFile, NamesATensorOfAnUnsupportedType) {
  const TensorToStore tensor{"blk.0.ffn_up.weight", {2, 256}};
  EXPECT_THAT(Error(GgufBuilder().Tensor(tensor, 10, std::string(168, 'x')).Build()),
              HasSubstr("'blk.0.ffn_up.weight' is stored as Q2_K; supported are F32, F16, BF16"));
  EXPECT_THAT(Error(GgufBuilder().Tensor(tensor, 12345, "").Build()),
              HasSubstr("is stored as number 12345"));
}

TEST(GgufFile, RefusesACountOrLengthBeyondTheFile) {
  // The tensor count and the metadata count lie at bytes 8 and 16.
  for (const size_t at : {8, 16}) {
    for (const uint64_t count : {uint64_t{1000}, uint64_t{1} << 62, ~uint64_t{0}}) {
      std::string bytes = GgufBuilder().U32("a", 1).Build();
      bytes.replace(at, 8, Bytes(count));
      EXPECT_THAT(Error(bytes), HasSubstr("truncated or damaged")) << at << " " << count;
    }
  }
  const auto array = [](uint32_t type, uint64_t count) { return Bytes(type) + Bytes(count); };
  for (const uint32_t type : {0u, 4u, 8u, 10u}) {
    EXPECT_THAT(Error(GgufBuilder().Raw("a", 9, array(type, ~0ull)).Build()),
                HasSubstr("truncated or damaged"));
  }
  EXPECT_THAT(Error(GgufBuilder().Raw("a", 8, Bytes<uint64_t>(~0ull)).Build()),
              HasSubstr("truncated or damaged"));
  EXPECT_THAT(Error(GgufBuilder().Raw("a", 9, array(9, 1)).Build()), HasSubstr("nested arrays"));
  EXPECT_THAT(Error(GgufBuilder().Raw("a", 13, "12345678").Build()), HasSubstr("unknown type 13"));
  EXPECT_THAT(Error(GgufBuilder().U32("a", 1).U32("a", 2).Build()),
              HasSubstr("'a' is there twice"));
  for (const uint32_t alignment : {0u, 3u, 1u << 30}) {
    EXPECT_THAT(Error(GgufBuilder().U32("general.alignment", alignment).Build()),
                HasSubstr("not a power of two"));
  }
}

// A directory entry: name, dimensions innermost first, type F32, offset.
std::string FileWithEntry(const std::vector<uint64_t>& dims, uint64_t offset) {
  std::string file = "GGUF" + Bytes<uint32_t>(3) + Bytes<uint64_t>(1) + Bytes<uint64_t>(0);
  file += Bytes<uint64_t>(1) + "t" + Bytes(static_cast<uint32_t>(dims.size()));
  for (const uint64_t dim : dims) file += Bytes(dim);
  file += Bytes<uint32_t>(0) + Bytes(offset);
  file.resize((file.size() + 31) / 32 * 32 + 64);
  return file;
}

TEST(GgufFile, RefusesAnImpossibleTensor) {
  EXPECT_EQ(Error(FileWithEntry({16}, 0)), "it opened");
  EXPECT_THAT(Error(FileWithEntry({17}, 0)), HasSubstr("needs 68 bytes at 0, the file has 64"));
  EXPECT_THAT(Error(FileWithEntry({8}, 64)), HasSubstr("needs 32 bytes at 64"));
  EXPECT_THAT(Error(FileWithEntry({8}, ~31ull)), HasSubstr("needs 32 bytes at"));
  EXPECT_THAT(Error(FileWithEntry({8}, 4)), HasSubstr("begins at 4, not a multiple of 32"));
  EXPECT_THAT(Error(FileWithEntry({0}, 0)), HasSubstr("a dimension of 0"));
  EXPECT_THAT(Error(FileWithEntry({~0ull}, 0)), HasSubstr("a dimension of"));
  EXPECT_THAT(Error(FileWithEntry({1ull << 32, 1ull << 32}, 0)), HasSubstr("a dimension of"));
  EXPECT_THAT(Error(FileWithEntry({1, 1, 1, 1, 1}, 0)), HasSubstr("has 5 dimensions"));
  EXPECT_THAT(Error(GgufBuilder().Tensor({"t", {33}}, 8, std::string(68, 'x')).Build()),
              HasSubstr("rows of 33 elements, not a multiple of the 32 in a Q8_0 block"));
  EXPECT_THAT(Error(GgufBuilder().Tensor({"t", {8}}).Tensor({"t", {8}}).Build()),
              HasSubstr("tensor 't' is there twice"));
  // Two tensors at the same offset: the second's is the last of the directory.
  std::string overlap = GgufBuilder().Tensor({"t", {16}}).Tensor({"u", {16}}).Build();
  const size_t offset = overlap.find(Bytes<uint64_t>(64), 60);
  ASSERT_NE(offset, std::string::npos);
  overlap.replace(offset, 8, Bytes<uint64_t>(32));
  EXPECT_THAT(Error(overlap), HasSubstr("tensors 't' and 'u' overlap"));
}

}  // namespace
}  // namespace lapidary
