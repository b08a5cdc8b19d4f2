// Every equation of the recurrences, once, as functions of scalars for host and device.
//
// No standard library and no CUB, so that nvcc, NVRTC and the host emulation of a block can all take it. T is float, or
// a vector of floats that brings its own operators and its own `multiply_add` and `lesser` (found by its namespace).
// Sources and index conventions: docs/equations.md. rewards[t] follows actions[t]; values[t] = V(s_t).
#pragma once

#if defined(__CUDACC__)
#define HPCRL_HD __host__ __device__ __forceinline__
#else
// Always inlined: a copy of an inline function compiled for AVX-512 must never be the one that the linker keeps for
// all.
#define HPCRL_HD inline __attribute__((always_inline))
#endif

namespace hpcrl {

// a * b + c; one rounding where the instruction set has it.
HPCRL_HD float multiply_add(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#elif defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

HPCRL_HD double multiply_add(double a, double b, double c) {
#if defined(__CUDA_ARCH__)
  return __fma_rn(a, b, c);
#elif defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}

// The lesser of both. A NaN in `value` comes through: a broken ratio must not be clipped into a plausible one.
HPCRL_HD float lesser(float limit, float value) {
  return limit < value ? limit : value;
}

// bfloat16 is the upper half of a float.
HPCRL_HD float bf16_to_float(unsigned short bits) {
  union {
    unsigned int word;
    float number;
  } widened;
  widened.word = static_cast<unsigned int>(bits) << 16;
  return widened.number;
}

// The map x(t+1) -> x(t) = add + mul * x(t+1).
template <class T>
struct Affine {
  T add;
  T mul;

  HPCRL_HD T operator()(T next) const { return multiply_add(mul, next, add); }
};

// First `later` (the step nearer to the end), then `earlier`. Associative, not commutative; the identity is {0, 1}.
template <class T>
HPCRL_HD Affine<T> compose(Affine<T> earlier, Affine<T> later) {
  return {multiply_add(earlier.mul, later.add, earlier.add), earlier.mul * later.mul};
}

// What one step reads. A recurrence looks only at the members that its kReads... constants name.
template <class T>
struct StepInputs {
  T reward;        // r(t)
  T value;         // V(s_t)
  T next_value;    // V(s_{t+1}); after the last step the trajectory's bootstrap value
  T action_value;  // Q(s_t, a_t)
  T ratio;         // pi(a_t | s_t) / mu(a_t | s_t)
};

template <class T>
struct StepOutputs {
  T advantage;
  T target;  // what the critic is fitted to: the member of the public face called `returns`
};

// Each recurrence below gives
//   start(bootstrap)          x after the last step
//   map(inputs)               x(t+1) -> x(t)
//   outputs(inputs, x, next)  what step t writes, from x = x(t) and next = x(t+1)
// and the constants
//   kReadsValues, kReadsActionValues, kReadsRatios: its inputs beside rewards and bootstrap values
//   kWritesAdvantages: both outputs, and the moments are of the advantages; else only returns, and of them
//   kConstantMul: map().mul is constant_mul() for every step

// Generalised advantage estimation. Schulman et al. 2016, arXiv:1506.02438, eq. 16 (its sum, written as a recurrence).
struct Gae {
  double gamma;
  double gae_lambda;

  static constexpr bool kReadsValues = true, kReadsActionValues = false, kReadsRatios = false;
  static constexpr bool kWritesAdvantages = true, kConstantMul = true;

  HPCRL_HD double constant_mul() const { return gamma * gae_lambda; }
  HPCRL_HD float start(float) const { return 0.0f; }

  // A(t) = delta(t) + gamma lambda A(t+1),  delta(t) = r(t) + gamma V(t+1) - V(t)
  template <class T>
  HPCRL_HD Affine<T> map(const StepInputs<T>& in) const {
    const T delta = multiply_add(T(static_cast<float>(gamma)), in.next_value, in.reward) - in.value;
    return {delta, T(static_cast<float>(constant_mul()))};
  }
  template <class T>
  HPCRL_HD StepOutputs<T> outputs(const StepInputs<T>& in, T x, T) const {
    return {x, x + in.value};
  }
};

// TD(lambda) returns. Sutton & Barto 2018, eq. 12.2 in its recursive form (their exercise 12.1).
struct TdLambda {
  double gamma;
  double td_lambda;

  static constexpr bool kReadsValues = true, kReadsActionValues = false, kReadsRatios = false;
  static constexpr bool kWritesAdvantages = false, kConstantMul = true;

  HPCRL_HD double constant_mul() const { return gamma * td_lambda; }
  HPCRL_HD float start(float bootstrap) const { return bootstrap; }

  // G(t) = r(t) + gamma ((1 - lambda) V(t+1) + lambda G(t+1)),  G after the last step = the bootstrap value
  template <class T>
  HPCRL_HD Affine<T> map(const StepInputs<T>& in) const {
    const T add = multiply_add(T(static_cast<float>(gamma * (1.0 - td_lambda))), in.next_value, in.reward);
    return {add, T(static_cast<float>(constant_mul()))};
  }
  template <class T>
  HPCRL_HD StepOutputs<T> outputs(const StepInputs<T>&, T x, T) const {
    return {x, x};
  }
};

// Discounted reward-to-go. Sutton & Barto 2018, eq. 3.9.
struct RewardToGo {
  double gamma;

  static constexpr bool kReadsValues = false, kReadsActionValues = false, kReadsRatios = false;
  static constexpr bool kWritesAdvantages = false, kConstantMul = true;

  HPCRL_HD double constant_mul() const { return gamma; }
  HPCRL_HD float start(float bootstrap) const { return bootstrap; }

  // G(t) = r(t) + gamma G(t+1),  G after the last step = the bootstrap value
  template <class T>
  HPCRL_HD Affine<T> map(const StepInputs<T>& in) const {
    return {in.reward, T(static_cast<float>(gamma))};
  }
  template <class T>
  HPCRL_HD StepOutputs<T> outputs(const StepInputs<T>&, T x, T) const {
    return {x, x};
  }
};

// V-trace. Espeholt et al. 2018, arXiv:1802.01561, eq. 1 with remark 1 (recursion) and remark 2 (lambda).
struct VTrace {
  double gamma;
  double trace_lambda;
  double rho_clip;
  double c_clip;

  static constexpr bool kReadsValues = true, kReadsActionValues = false, kReadsRatios = true;
  static constexpr bool kWritesAdvantages = true, kConstantMul = false;

  HPCRL_HD double constant_mul() const { return 0.0; }
  HPCRL_HD float start(float) const { return 0.0f; }

  template <class T>
  HPCRL_HD T rho(const StepInputs<T>& in) const {
    return lesser(T(static_cast<float>(rho_clip)), in.ratio);
  }
  // x(t) = v(t) - V(t) = rho(t) (r(t) + gamma V(t+1) - V(t)) + gamma c(t) x(t+1),  c(t) = lambda min(c_clip, ratio(t))
  template <class T>
  HPCRL_HD Affine<T> map(const StepInputs<T>& in) const {
    const T delta = multiply_add(T(static_cast<float>(gamma)), in.next_value, in.reward) - in.value;
    const T trace = lesser(T(static_cast<float>(c_clip)), in.ratio);
    return {rho(in) * delta, T(static_cast<float>(gamma * trace_lambda)) * trace};
  }
  // The policy gradient's advantage is rho(t) (r(t) + gamma v(t+1) - V(t)), where v(t+1) = V(t+1) + x(t+1).
  template <class T>
  HPCRL_HD StepOutputs<T> outputs(const StepInputs<T>& in, T x, T next) const {
    const T next_target = in.next_value + next;
    const T advantage = rho(in) * (multiply_add(T(static_cast<float>(gamma)), next_target, in.reward) - in.value);
    return {advantage, x + in.value};
  }
};

// Retrace(lambda). Munos et al. 2016, arXiv:1606.02647, eqs. 3 and 4 with c(t) = lambda min(1, ratio(t)).
// V(t) here is the expectation of Q(s_t, a) over the target policy pi.
struct Retrace {
  double gamma;
  double trace_lambda;

  static constexpr bool kReadsValues = true, kReadsActionValues = true, kReadsRatios = true;
  static constexpr bool kWritesAdvantages = true, kConstantMul = false;

  HPCRL_HD double constant_mul() const { return 0.0; }
  HPCRL_HD float start(float) const { return 0.0f; }

  template <class T>
  HPCRL_HD T delta(const StepInputs<T>& in) const {
    return multiply_add(T(static_cast<float>(gamma)), in.next_value, in.reward) - in.action_value;
  }
  // The correction Q_ret(t) - Q(t) = delta(t) + gamma c(t+1) (Q_ret(t+1) - Q(t+1)) looks at the next step's trace. We
  // carry x(t) = c(t) (Q_ret(t) - Q(t)) instead, which looks only at its own: x(t) = c(t) delta(t) + gamma c(t) x(t+1).
  template <class T>
  HPCRL_HD Affine<T> map(const StepInputs<T>& in) const {
    const T trace = T(static_cast<float>(trace_lambda)) * lesser(T(1.0f), in.ratio);
    return {trace * delta(in), T(static_cast<float>(gamma)) * trace};
  }
  // Q_ret(t) = Q(t) + delta(t) + gamma x(t+1); the advantage is Q_ret(t) - V(t).
  template <class T>
  HPCRL_HD StepOutputs<T> outputs(const StepInputs<T>& in, T, T next) const {
    const T target = in.action_value + multiply_add(T(static_cast<float>(gamma)), next, delta(in));
    return {target - in.value, target};
  }
};

}  // namespace hpcrl
