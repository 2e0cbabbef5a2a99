// `lapidary top`: a live table of a server's metrics.
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "cli/commands.h"
#include "cli/http_get.h"
#include "cli/signals.h"
#include "cli/top/top_view.h"
#include "common/status_macros.h"

namespace lapidary {
namespace {

struct Scrape {
  MetricsPage page;
  absl::Time time;
};

absl::StatusOr<Scrape> Fetch(const std::string& address, absl::Duration timeout) {
  Scrape out;
  out.time = absl::Now();
  ASSIGN_OR_RETURN(const HttpPage page, HttpGet(address, "/metrics", timeout));
  if (page.code != 200) {
    return absl::UnavailableError(
        absl::StrFormat("http://%s/metrics answered with %d", address, page.code));
  }
  ASSIGN_OR_RETURN(out.page, MetricsPage::Parse(page.body));
  return out;
}

absl::StatusOr<TopView> ViewOf(const std::optional<Scrape>& before, const Scrape& after) {
  return MakeTopView(before ? &before->page : nullptr, after.page,
                     before ? absl::ToDoubleSeconds(after.time - before->time) : 0,
                     absl::ToUnixMicros(after.time) * 1e-6);
}

// Until a stop signal (false), the time (true), or something that interrupts, as a new window size
// does (true).
bool Wait(absl::Time until) {
  const int64_t left = absl::ToInt64Milliseconds(until - absl::Now()) + 1;
  pollfd stop = {StopDescriptor(), POLLIN, 0};
  if (!StopRequested()) {
    poll(&stop, 1, static_cast<int>(std::clamp<int64_t>(left, 0, 3'600'000)));
  }
  return !StopRequested();
}

int PrintOnce(const TopFlags& flags) {
  const absl::Duration interval = absl::Seconds(flags.interval_s);
  std::optional<Scrape> before;
  if (interval > absl::ZeroDuration()) {
    absl::StatusOr<Scrape> first = Fetch(flags.metrics_server, absl::Seconds(10));
    if (!first.ok()) return Fail(first.status());
    before = *std::move(first);
    while (absl::Now() < before->time + interval) {
      if (!Wait(before->time + interval)) return 130;
    }
  }
  const absl::StatusOr<Scrape> scrape = Fetch(flags.metrics_server, absl::Seconds(10));
  if (!scrape.ok()) return Fail(scrape.status());
  const absl::StatusOr<TopView> view = ViewOf(before, *scrape);
  if (!view.ok()) return Fail(view.status());
  for (const std::string& line : RenderTop(*view, 100)) std::puts(line.c_str());
  return 0;
}

// The terminal's other screen, without a cursor; back to the first one at the end.
class Screen {
 public:
  Screen() { Write("\x1b[?1049h\x1b[?25l"); }
  ~Screen() { Write("\x1b[?25h\x1b[?1049l"); }
  Screen(const Screen&) = delete;
  Screen& operator=(const Screen&) = delete;

  // Columns and rows, asked anew: the window may have changed.
  static std::pair<int, int> Size() {
    winsize size = {};
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return {80, 24};
    return {size.ws_col, size.ws_row};
  }
  // In one write, so that nothing flickers.
  static void Draw(const std::vector<std::string>& lines, size_t rows) {
    std::string out = "\x1b[H";
    for (size_t i = 0; i < std::min(lines.size(), rows); ++i) {
      absl::StrAppend(&out, i > 0 ? "\r\n" : "", lines[i], "\x1b[K");
    }
    out += "\x1b[J";
    Write(out);
  }

 private:
  static void Write(const std::string& bytes) {
    std::fwrite(bytes.data(), 1, bytes.size(), stdout);
    std::fflush(stdout);
  }
};

// Makes poll() return when the window's size changes.
void WakeOnResize() {
  struct sigaction action = {};
  action.sa_handler = [](int) {};
  sigaction(SIGWINCH, &action, nullptr);
}

int RunLive(const TopFlags& flags) {
  const absl::Duration interval = absl::Seconds(flags.interval_s);
  const absl::Duration timeout = std::clamp(interval, absl::Seconds(1), absl::Seconds(10));
  WakeOnResize();
  Screen screen;
  std::optional<Scrape> last;
  std::optional<TopView> view;
  absl::Time answered = absl::Now(), next = absl::Now();
  std::string trouble;
  while (!StopRequested()) {
    if (absl::Now() >= next) {
      next = absl::Now() + interval;
      absl::StatusOr<Scrape> scrape = Fetch(flags.metrics_server, timeout);
      absl::StatusOr<TopView> fresh = scrape.ok() ? ViewOf(last, *scrape) : scrape.status();
      if (fresh.ok()) {
        view = *std::move(fresh);
        last = *std::move(scrape);
        answered = absl::Now();
        trouble.clear();
      } else {
        trouble = std::string(fresh.status().message());
      }
    }
    const auto [width, height] = Screen::Size();
    const std::string source =
        absl::StrFormat("%s, every %g s; Ctrl-C ends", flags.metrics_server, flags.interval_s);
    std::vector<std::string> lines = {source};
    if (!trouble.empty()) {
      lines[0] = absl::StrFormat("%s: %s (for %.0f s; still trying)", flags.metrics_server, trouble,
                                 absl::ToDoubleSeconds(absl::Now() - answered));
    }
    lines[0].resize(std::min(lines[0].size(), static_cast<size_t>(width)));
    if (view) {
      for (std::string& line : RenderTop(*view, width)) lines.push_back(std::move(line));
    }
    Screen::Draw(lines, static_cast<size_t>(height));
    Wait(std::min(next, absl::Now() + absl::Seconds(1)));  // the seconds of a silence count up
  }
  return 0;
}

}  // namespace

int RunTop(const TopFlags& flags) {
  if (flags.once || isatty(STDOUT_FILENO) == 0) return PrintOnce(flags);
  if (flags.interval_s <= 0) {
    return Fail(absl::InvalidArgumentError("--interval 0 (since the start) needs --once"));
  }
  return RunLive(flags);
}

}  // namespace lapidary
