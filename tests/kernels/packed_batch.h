// A packed batch with hazards around it, and what the five recurrences make of it in float64, written independently of
// math.h.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/ops.h"

namespace packed {

constexpr int kGuard = 8;  // elements before and behind each output that must stay as they are
constexpr float kGuardValue = 12345.0f;

// One column in float32 or bfloat16, `skew` elements off a 64-byte border. The heap object ends with the last element.
class Input {
 public:
  Input(const std::vector<float>& numbers, hpcrl::Element element, int skew) : element_(element), skew_(skew) {
    const size_t width = element == hpcrl::Element::kFloat32 ? 4 : 2, bytes = (skew + numbers.size()) * width;
    storage_.reset(static_cast<char*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64)));
    for (size_t i = 0; i < numbers.size(); ++i) {
      char* to = storage_.get() + (skew + i) * width;
      const uint32_t bits = std::bit_cast<uint32_t>(numbers[i]);
      if (width == 4) {
        std::memcpy(to, &bits, 4);
      } else {
        const uint16_t upper = static_cast<uint16_t>(bits >> 16);
        std::memcpy(to, &upper, 2);
      }
    }
  }
  hpcrl::Column column() const {
    return {storage_.get() + skew_ * (element_ == hpcrl::Element::kFloat32 ? 4 : 2), element_};
  }

 private:
  struct Free {
    void operator()(char* pointer) const { std::free(pointer); }
  };
  hpcrl::Element element_;
  int skew_;
  std::unique_ptr<char, Free> storage_;
};

// An output full of NaN between guard bands.
class Output {
 public:
  Output(int64_t size, int skew) : size_(size), begin_(kGuard + skew), storage_(size + 2 * kGuard + 4, kGuardValue) {
    std::fill_n(data(), size, std::numeric_limits<float>::quiet_NaN());
  }
  float* data() { return storage_.data() + begin_; }
  std::vector<float> numbers() const { return {storage_.begin() + begin_, storage_.begin() + begin_ + size_}; }
  bool guards_are_whole() const {
    for (int64_t i = 0; i < static_cast<int64_t>(storage_.size()); ++i) {
      if ((i < begin_ || i >= begin_ + size_) && storage_[i] != kGuardValue) return false;
    }
    return true;
  }

 private:
  int64_t size_, begin_;
  std::vector<float> storage_;
};

struct Batch {
  std::vector<int64_t> offsets;
  std::vector<float> rewards, values, action_values, ratios;  // [num_steps]
  std::vector<float> bootstrap_values;                        // [num_trajectories]

  int64_t num_steps() const { return offsets.back(); }
  int64_t num_trajectories() const { return static_cast<int64_t>(offsets.size()) - 1; }
};

// Numbers that bfloat16 holds exactly, so that one oracle serves both element types.
inline Batch batch_of(const std::vector<int64_t>& lengths, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  const auto number = [&] { return std::bit_cast<float>(std::bit_cast<uint32_t>(normal(random)) & 0xFFFF0000u); };
  Batch batch;
  batch.offsets = {0};
  for (const int64_t length : lengths) batch.offsets.push_back(batch.offsets.back() + length);
  for (int64_t t = 0; t < batch.num_steps(); ++t) {
    batch.rewards.push_back(number());
    batch.values.push_back(number());
    batch.action_values.push_back(number());
    batch.ratios.push_back(std::abs(number()) + 0.25f);
    batch.ratios.back() = std::bit_cast<float>(std::bit_cast<uint32_t>(batch.ratios.back()) & 0xFFFF0000u);
  }
  for (size_t i = 0; i < lengths.size(); ++i) batch.bootstrap_values.push_back(i % 3 == 0 ? 0.0f : number());
  return batch;
}

struct Expected {
  std::vector<double> advantages, returns;
};

// Calls step(t, next value) for every step, from the end of each trajectory to its begin.
template <class Begin, class Step>
void backwards(const Batch& batch, Begin begin, Step step) {
  for (int64_t i = 0; i < batch.num_trajectories(); ++i) {
    double next_value = batch.bootstrap_values[i];
    begin(next_value);
    for (int64_t t = batch.offsets[i + 1] - 1; t >= batch.offsets[i]; --t) {
      step(t, next_value);
      next_value = batch.values[t];
    }
  }
}

inline Expected expected(const hpcrl::Gae& op, const Batch& b) {
  Expected out{std::vector<double>(b.num_steps()), std::vector<double>(b.num_steps())};
  double advantage = 0;
  backwards(
      b, [&](double) { advantage = 0; },
      [&](int64_t t, double next_value) {
        advantage = b.rewards[t] + op.gamma * next_value - b.values[t] + op.gamma * op.gae_lambda * advantage;
        out.advantages[t] = advantage, out.returns[t] = advantage + b.values[t];
      });
  return out;
}

inline Expected expected(const hpcrl::TdLambda& op, const Batch& b) {
  Expected out{{}, std::vector<double>(b.num_steps())};
  double target = 0;
  backwards(
      b, [&](double bootstrap) { target = bootstrap; },
      [&](int64_t t, double next_value) {
        target = b.rewards[t] + op.gamma * ((1 - op.td_lambda) * next_value + op.td_lambda * target);
        out.returns[t] = target;
      });
  return out;
}

inline Expected expected(const hpcrl::RewardToGo& op, const Batch& b) {
  Expected out{{}, std::vector<double>(b.num_steps())};
  double target = 0;
  backwards(
      b, [&](double bootstrap) { target = bootstrap; },
      [&](int64_t t, double) {
        target = b.rewards[t] + op.gamma * target;
        out.returns[t] = target;
      });
  return out;
}

inline Expected expected(const hpcrl::VTrace& op, const Batch& b) {
  Expected out{std::vector<double>(b.num_steps()), std::vector<double>(b.num_steps())};
  double next_target = 0;
  backwards(
      b, [&](double bootstrap) { next_target = bootstrap; },
      [&](int64_t t, double next_value) {
        const double rho = std::fmin(op.rho_clip, b.ratios[t]), c = op.trace_lambda * std::fmin(op.c_clip, b.ratios[t]);
        const double delta = rho * (b.rewards[t] + op.gamma * next_value - b.values[t]);
        out.advantages[t] = rho * (b.rewards[t] + op.gamma * next_target - b.values[t]);
        out.returns[t] = b.values[t] + delta + op.gamma * c * (next_target - next_value);
        next_target = out.returns[t];
      });
  return out;
}

inline Expected expected(const hpcrl::Retrace& op, const Batch& b) {
  Expected out{std::vector<double>(b.num_steps()), std::vector<double>(b.num_steps())};
  double next_correction = 0;  // c(t+1) (Q_ret(t+1) - Q(t+1))
  backwards(
      b, [&](double) { next_correction = 0; },
      [&](int64_t t, double next_value) {
        const double target = b.rewards[t] + op.gamma * (next_value + next_correction);
        next_correction = op.trace_lambda * std::fmin(1.0, b.ratios[t]) * (target - b.action_values[t]);
        out.advantages[t] = target - b.values[t], out.returns[t] = target;
      });
  return out;
}

// ||given - wanted|| / ||wanted||; NaN counts as wrong.
inline double relative_error(const std::vector<float>& given, const std::vector<double>& wanted) {
  double squares = 0, scale = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    squares += (given[i] - wanted[i]) * (given[i] - wanted[i]);
    scale += wanted[i] * wanted[i];
  }
  return wanted.empty() ? 0.0 : std::sqrt(squares) / std::sqrt(scale + 1e-300);
}

}  // namespace packed
