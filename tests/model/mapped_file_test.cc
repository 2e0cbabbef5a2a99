#include "model/mapped_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>

#include "common/mapped_faults.h"

namespace lapidary {
namespace {

const int64_t kPage = sysconf(_SC_PAGESIZE);

std::string FileOf(const char* name, int64_t bytes) {
  const std::string path = ::testing::TempDir() + name;
  std::ofstream(path, std::ios::binary) << std::string(static_cast<size_t>(bytes), 'x');
  return path;
}

// The byte at `offset` of a file that is cut to nothing once it is mapped.
void ReadTruncated(const std::string& path, int64_t offset) {
  InstallMappedFaultHandler();
  const auto file = MappedFile::Open(path);
  if (!file.ok() || (*file)->data()[offset] != 'x' || truncate(path.c_str(), 0) != 0) exit(2);
  const volatile uint8_t byte = (*file)->data()[offset];
  exit(byte == 'x' ? 3 : 4);  // not reached
}

TEST(MappedFileDeathTest, AFileTruncatedWhileItIsMappedIsNamed) {
  const std::string path = FileOf("truncated.bin", 4 * kPage);
  EXPECT_EXIT(ReadTruncated(path, 0), ::testing::ExitedWithCode(1),
              "truncated.bin was truncated or its disk failed while it was mapped");
}

TEST(MappedFileDeathTest, TheOneThatFaultsIsNamedAmongOthers) {
  const std::string gone = FileOf("gone.bin", kPage), other = FileOf("other.bin", kPage);
  const std::string path = FileOf("cut.bin", 4 * kPage);
  const auto keep = MappedFile::Open(other);
  ASSERT_TRUE(keep.ok());
  { ASSERT_TRUE(MappedFile::Open(gone).ok()); }  // its entry is free again
  EXPECT_EXIT(ReadTruncated(path, 4 * kPage - 1), ::testing::ExitedWithCode(1), "cut.bin was");
}

TEST(MappedFileDeathTest, OtherCausesKillAsBefore) {
  EXPECT_EXIT(
      {
        InstallMappedFaultHandler();
        raise(SIGBUS);
      },
      ::testing::KilledBySignal(SIGBUS), "");
}

TEST(MappedFileTest, MoreMappingsThanNamesAreHarmless) {
  std::vector<std::unique_ptr<MappedFile>> files;
  const std::string path = FileOf("many.bin", kPage);
  for (int i = 0; i < 600; ++i) {
    auto file = MappedFile::Open(path);
    ASSERT_TRUE(file.ok()) << file.status();
    files.push_back(*std::move(file));
  }
}

}  // namespace
}  // namespace lapidary
