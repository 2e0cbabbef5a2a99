// docs/metrics.md lists exactly what coordinator, leader and other ranks have, as they describe it.
//
//   metrics_docs_test --rewrite     writes the table anew; commit only a difference you can explain
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cli/top/metrics_text.h"
#include "coordinator/coordinator_metrics.h"
#include "worker/worker_metrics.h"

namespace lapidary {
namespace {

bool g_rewrite = false;
constexpr char kPath[] = "docs/metrics.md";
constexpr char kBegin[] = "<!-- table -->\n", kEnd[] = "<!-- end of table -->\n";

struct Family {
  std::string type, help;
  std::set<std::string> labels;
  std::vector<std::string> processes;
};

void AddPage(const std::string& process, const std::string& text,
             std::map<std::string, Family>* families) {
  const absl::StatusOr<MetricsPage> page = MetricsPage::Parse(text);
  ASSERT_TRUE(page.ok()) << page.status();
  for (const auto& [name, type] : page->types()) {
    Family& family = (*families)[name];
    const std::string help = page->helps().at(name);
    EXPECT_TRUE(family.help.empty() || family.help == help)
        << name << " says '" << help << "' on the " << process << " and '" << family.help
        << "' elsewhere";
    EXPECT_FALSE(help.empty()) << name;
    family.help = help;
    family.type = type;
    family.processes.push_back(process);
    for (const MetricSample& sample : page->samples()) {
      if (sample.name != name && (type != "histogram" || (sample.name != name + "_bucket" &&
                                                          sample.name != name + "_sum"))) {
        continue;
      }
      for (const auto& label : sample.labels) {
        if (label.first != "le") family.labels.insert(label.first);
      }
    }
  }
}

std::string Table() {
  std::map<std::string, Family> families;
  MetricsRegistry coordinator, leader, other;
  CoordinatorMetrics metrics(coordinator, MetricsOptions{.model_name = "m"});
  metrics.Update(GroupState{}, 0);
  WorkerMetrics of_leader(leader, 0), of_other(other, 1);
  AddPage("coordinator", coordinator.Text(), &families);
  AddPage("leader", leader.Text(), &families);
  AddPage("other ranks", other.Text(), &families);
  std::string out = "| name | type | labels | on | meaning |\n|---|---|---|---|---|\n";
  for (const auto& [name, family] : families) {
    const std::string on =
        family.processes.size() == 3 ? "all" : absl::StrJoin(family.processes, ", ");
    absl::StrAppend(&out, "| `", name, "` | ", family.type, " | ",
                    absl::StrJoin(family.labels, ", "), " | ", on, " | ", family.help, " |\n");
  }
  return out;
}

TEST(MetricsDocs, TheTableIsWhatIsServed) {
  std::ifstream file(kPath);
  std::string text((std::istreambuf_iterator<char>(file)), {});
  const size_t begin = text.find(kBegin), end = text.find(kEnd);
  ASSERT_NE(begin, std::string::npos);
  ASSERT_NE(end, std::string::npos);
  const size_t table = begin + sizeof kBegin - 1;
  if (g_rewrite) {
    text.replace(table, end - table, Table());
    std::ofstream(kPath) << text;
    return;
  }
  EXPECT_EQ(text.substr(table, end - table), Table()) << "metrics_docs_test --rewrite writes it";
}

}  // namespace
}  // namespace lapidary

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  for (int i = 1; i < argc; ++i) lapidary::g_rewrite |= std::string(argv[i]) == "--rewrite";
  return RUN_ALL_TESTS();
}
