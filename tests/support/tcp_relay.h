// A TCP relay on loopback that can fall silent: connections stay open and nothing passes, as with a
// stopped process or a cut cable.
#pragma once
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <thread>

namespace lapidary {

// Relays one connection.
class TcpRelay {
 public:
  explicit TcpRelay(int target_port) : target_port_(target_port) {
    listener_ = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address = Loopback(0);
    bind(listener_, reinterpret_cast<sockaddr*>(&address), sizeof address);
    listen(listener_, 1);
    socklen_t size = sizeof address;
    getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] { Run(); });
  }
  ~TcpRelay() {
    stop_ = true;
    thread_.join();
    close(listener_);
  }
  int port() const { return port_; }
  void Freeze() { frozen_ = true; }

 private:
  static sockaddr_in Loopback(int port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
  }

  void Run() {
    pollfd waiting{listener_, POLLIN, 0};
    while (poll(&waiting, 1, 10) == 0) {
      if (stop_) return;
    }
    const int near = accept(listener_, nullptr, nullptr);
    const int far = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address = Loopback(target_port_);
    if (connect(far, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0) {
      while (!stop_ && Forward(near, far)) {
      }
    }
    close(near);
    close(far);
  }

  // Moves what is there; false when a side has closed.
  bool Forward(int near, int far) {
    pollfd ends[2] = {{near, POLLIN, 0}, {far, POLLIN, 0}};
    if (frozen_) {
      poll(nullptr, 0, 10);
      return true;
    }
    if (poll(ends, 2, 10) <= 0) return true;
    char buffer[65536];
    for (int i = 0; i < 2; ++i) {
      if (ends[i].revents == 0) continue;
      const ssize_t n = recv(ends[i].fd, buffer, sizeof buffer, 0);
      if (n <= 0) return false;
      for (ssize_t sent = 0; sent < n;) {
        const ssize_t now =
            send(ends[1 - i].fd, buffer + sent, static_cast<size_t>(n - sent), MSG_NOSIGNAL);
        if (now <= 0) return false;
        sent += now;
      }
    }
    return true;
  }

  const int target_port_;
  int listener_ = -1, port_ = 0;
  std::atomic<bool> stop_{false}, frozen_{false};
  std::thread thread_;
};

}  // namespace lapidary
