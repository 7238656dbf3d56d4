// Registers the operators with ExecuTorch. Their schemas are in operators.py.
#include <executorch/extension/kernel_util/make_boxed_from_unboxed_functor.h>
#include <executorch/runtime/kernel/kernel_includes.h>
#include <executorch/runtime/kernel/thread_parallel_interface.h>

#include <algorithm>
#include <cinttypes>
#include <cmath>

#include "attention.h"
#include "experts.h"
#include "linear.h"
#include "recurrence.h"

namespace slm {
namespace {

using executorch::aten::Tensor;
using executorch::runtime::Error;
using executorch::runtime::KernelRuntimeContext;

bool resized(KernelRuntimeContext& context, Tensor& out, executorch::aten::ArrayRef<executorch::aten::SizesType> sizes) {
  if (executorch::runtime::resize_tensor(out, sizes) == Error::Ok) return true;
  context.fail(Error::InvalidArgument);
  return false;
}

const float* given(const Tensor& values) { return values.numel() > 0 ? values.const_data_ptr<float>() : nullptr; }

Tensor& attention_out(KernelRuntimeContext& context, const Tensor& query, const Tensor& key, const Tensor& value,
                      const Tensor& position, Tensor& keys, Tensor& values, Tensor& scales, const Tensor& constants,
                      const Tensor& slopes, const Tensor& learned, int64_t bits, int64_t window, int64_t sinks, bool zero_point, bool rotation,
                      bool fine, double score_scale, double score_cap, Tensor& out) {
  if (!resized(context, out, query.sizes())) return out;
  const Layer layer{keys.size(0),
                    keys.size(1),
                    query.size(1),
                    query.size(2),
                    window,
                    sinks,
                    static_cast<int>(bits),
                    zero_point,
                    rotation,
                    fine,
                    static_cast<float>(score_scale),
                    static_cast<float>(score_cap),
                    constants.const_data_ptr<float>(),
                    given(slopes),
                    given(learned),
                    keys.mutable_data_ptr<uint8_t>(),
                    values.mutable_data_ptr<uint8_t>(),
                    static_cast<uint16_t*>(scales.mutable_data_ptr())};
  const Chunk chunk{position.const_data_ptr<int64_t>()[0], query.size(0), query.const_data_ptr<float>(), key.const_data_ptr<float>(),
                    value.const_data_ptr<float>(), out.mutable_data_ptr<float>()};
  const Path& path = chosen_path(layer);
  const int64_t pieces = (chunk.tokens + 7) / 8;  // of a chunk, so that few heads still keep all threads busy
  executorch::extension::parallel_for(0, layer.kv_heads, 1, [&](int64_t first, int64_t last) {
    for (int64_t head = first; head < last; head++) store(layer, chunk, head);
  });
  executorch::extension::parallel_for(0, layer.kv_heads * pieces, 1, [&](int64_t first, int64_t last) {
    for (int64_t item = first; item < last; item++) {
      const int64_t from = item % pieces * 8;
      attend(layer, chunk, path, item / pieces, from, std::min(from + 8, chunk.tokens));
    }
  });
  return out;
}

Tensor& rms_norm_out(KernelRuntimeContext& context, const Tensor& value, const Tensor& gain, double eps, Tensor& out) {
  if (!resized(context, out, value.sizes())) return out;
  const int64_t size = gain.numel(), rows = value.numel() / size;
  const float *in = value.const_data_ptr<float>(), *gains = gain.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  for (int64_t row = 0; row < rows; row++, in += size, to += size) {
    float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < size; i++) squares += in[i] * in[i];
    const float factor = 1.0f / std::sqrt(squares / static_cast<float>(size) + static_cast<float>(eps));
    for (int64_t i = 0; i < size; i++) to[i] = in[i] * factor * gains[i];
  }
  return out;
}

// Leading 2 * n channels of [S, heads, Hd] by tables [S, 1, n]; the rest pass.
Tensor& rotary_out(KernelRuntimeContext& context, const Tensor& value, const Tensor& cosine, const Tensor& sine, Tensor& out) {
  if (!resized(context, out, value.sizes())) return out;
  const int64_t tokens = value.size(0), heads = value.size(1), size = value.size(2), half = cosine.size(2);
  const float* in = value.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  for (int64_t token = 0; token < tokens; token++) {
    const float* c = cosine.const_data_ptr<float>() + token * half;
    const float* s = sine.const_data_ptr<float>() + token * half;
    for (int64_t head = 0; head < heads; head++, in += size, to += size) {
      for (int64_t i = 0; i < half; i++) {
        to[i] = in[i] * c[i] - in[i + half] * s[i];
        to[i + half] = in[i + half] * c[i] + in[i] * s[i];
      }
      for (int64_t i = 2 * half; i < size; i++) to[i] = in[i];
    }
  }
  return out;
}

Tensor& silu_out(KernelRuntimeContext& context, const Tensor& value, Tensor& out) {
  if (!resized(context, out, value.sizes())) return out;
  const float* in = value.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  executorch::extension::parallel_for(0, value.numel(), 1 << 14, [&](int64_t first, int64_t last) {
    fastest_path().silu(in + first, last - first, to + first);
  });
  return out;
}

// Codes [E, rows, bytes] with scales [E, rows, groups] as the matrix of the first expert.
Weights first_matrix(const Tensor& codes, const Tensor& scales, int64_t columns, int64_t group_size) {
  const bool half = scales.scalar_type() == executorch::aten::ScalarType::Half;
  return {codes.size(1),
          columns,
          scales.size(2),
          group_size,
          codes.size(2),
          4,
          codes.const_data_ptr<uint8_t>(),
          half ? nullptr : scales.const_data_ptr<float>(),
          half ? static_cast<const uint16_t*>(scales.const_data_ptr()) : nullptr};
}

Tensor& experts_out(KernelRuntimeContext& context, const Tensor& value, const Tensor& router, const Tensor& router_bias,
                    const Tensor& selection_bias, const Tensor& gate_up, const Tensor& gate_up_scales, const Tensor& gate_up_bias,
                    const Tensor& down, const Tensor& down_scales, const Tensor& down_bias, int64_t group_size, int64_t chosen,
                    bool sigmoid, bool renormalized, int64_t groups, int64_t chosen_groups, bool best_two, double slope, double limit,
                    double up_offset, bool rounded, Tensor& out) {
  if (!resized(context, out, value.sizes())) return out;
  const int64_t hidden = value.size(1), inner = gate_up.size(1) / 2;
  const Experts experts{{router.size(0), chosen, sigmoid, renormalized, groups, chosen_groups, best_two},
                        hidden,
                        inner,
                        router.const_data_ptr<float>(),
                        given(router_bias),
                        given(selection_bias),
                        first_matrix(gate_up, gate_up_scales, hidden, group_size),
                        first_matrix(down, down_scales, inner, group_size),
                        given(gate_up_bias),
                        given(down_bias),
                        static_cast<float>(slope),
                        static_cast<float>(limit),
                        static_cast<float>(up_offset),
                        rounded};
  mix(experts, value.const_data_ptr<float>(), value.size(0), out.mutable_data_ptr<float>(), [](int64_t count, const Piece& piece) {
    executorch::extension::parallel_for(0, count, 64, piece);
  });
  return out;
}

// [S, in] times codes [out, bytes] with scales [out, groups] -> [S, out].
Tensor& linear_out(KernelRuntimeContext& context, const Tensor& value, const Tensor& codes, const Tensor& scales, int64_t bits,
                   int64_t group_size, Tensor& out) {
  const int64_t tokens = value.size(0), rows = codes.size(0);
  const executorch::aten::SizesType sizes[] = {static_cast<int32_t>(tokens), static_cast<int32_t>(rows)};
  if (!resized(context, out, {sizes, 2})) return out;
  const bool half = scales.scalar_type() == executorch::aten::ScalarType::Half;
  const Weights weights{rows,
                        value.size(1),
                        scales.size(1),
                        group_size,
                        codes.size(1),
                        static_cast<int>(bits),
                        static_cast<const uint8_t*>(codes.const_data_ptr()),
                        half ? nullptr : scales.const_data_ptr<float>(),
                        half ? static_cast<const uint16_t*>(scales.const_data_ptr()) : nullptr};
  const float* in = value.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  executorch::extension::parallel_for(0, rows, 64, [&](int64_t first, int64_t last) { multiply(weights, in, tokens, first, last, to); });
  return out;
}

// Where a layer's state [2, ...] stands for this call. Fails where an earlier call left nothing for its position.
Turn begun(KernelRuntimeContext& context, const Tensor& position, Tensor& state, Tensor& held, int64_t tokens) {
  const States states{state.mutable_data_ptr<float>(), held.mutable_data_ptr<int64_t>(), state.numel() / 2};
  const Turn turn = begin(states, position.const_data_ptr<int64_t>()[0], tokens);
  if (turn.to == nullptr) {
    ET_LOG(Error, "no recurrent state stands before position %" PRId64, position.const_data_ptr<int64_t>()[0]);
    context.fail(Error::InvalidState);
  }
  return turn;
}

Tensor& causal_convolution_out(KernelRuntimeContext& context, const Tensor& value, const Tensor& position, Tensor& state, Tensor& held,
                               const Tensor& weight, const Tensor& bias, Tensor& out) {
  if (!resized(context, out, value.sizes())) return out;
  const Turn turn = begun(context, position, state, held, value.size(0));
  if (turn.to == nullptr) return out;
  const Convolution convolution{value.size(0), value.size(1), weight.size(0), value.const_data_ptr<float>(), weight.const_data_ptr<float>(),
                                given(bias), out.mutable_data_ptr<float>()};
  executorch::extension::parallel_for(0, convolution.channels, 1024, [&](int64_t first, int64_t last) {
    convolve(convolution, turn, first, last);
  });
  return out;
}

Tensor& selective_scan_out(KernelRuntimeContext& context, const Tensor& value, const Tensor& step, const Tensor& entering,
                           const Tensor& leaving, const Tensor& position, Tensor& state, Tensor& held, const Tensor& decay,
                           const Tensor& skip, Tensor& out) {
  if (!resized(context, out, value.sizes())) return out;
  const Turn turn = begun(context, position, state, held, value.size(0));
  if (turn.to == nullptr) return out;
  const Scan channels{value.size(0),
                      value.size(1),
                      decay.size(1),
                      value.const_data_ptr<float>(),
                      step.const_data_ptr<float>(),
                      entering.const_data_ptr<float>(),
                      leaving.const_data_ptr<float>(),
                      decay.const_data_ptr<float>(),
                      skip.const_data_ptr<float>(),
                      out.mutable_data_ptr<float>()};
  executorch::extension::parallel_for(0, channels.channels, 128, [&](int64_t first, int64_t last) { scan(channels, turn, first, last); });
  return out;
}

Tensor& state_space_dual_out(KernelRuntimeContext& context, const Tensor& value, const Tensor& step, const Tensor& entering,
                             const Tensor& leaving, const Tensor& position, Tensor& state, Tensor& held, const Tensor& step_bias,
                             const Tensor& decay, const Tensor& skip, double shortest_step, Tensor& out) {
  if (!resized(context, out, value.sizes())) return out;
  const Turn turn = begun(context, position, state, held, value.size(0));
  if (turn.to == nullptr) return out;
  const Dual dual{value.size(0),
                  state.size(1),
                  state.size(2),
                  state.size(3),
                  state.size(4),
                  static_cast<float>(shortest_step),
                  value.const_data_ptr<float>(),
                  step.const_data_ptr<float>(),
                  entering.const_data_ptr<float>(),
                  leaving.const_data_ptr<float>(),
                  step_bias.const_data_ptr<float>(),
                  decay.const_data_ptr<float>(),
                  skip.const_data_ptr<float>(),
                  out.mutable_data_ptr<float>()};
  executorch::extension::parallel_for(0, decay.numel(), 2, [&](int64_t first, int64_t last) { scan_heads(dual, turn, first, last); });
  return out;
}

}  // namespace
}  // namespace slm

EXECUTORCH_LIBRARY(slm, "linear.out", slm::linear_out);
EXECUTORCH_LIBRARY(slm, "experts.out", slm::experts_out);
EXECUTORCH_LIBRARY(slm, "attention.out", slm::attention_out);
EXECUTORCH_LIBRARY(slm, "causal_convolution.out", slm::causal_convolution_out);
EXECUTORCH_LIBRARY(slm, "selective_scan.out", slm::selective_scan_out);
EXECUTORCH_LIBRARY(slm, "state_space_dual.out", slm::state_space_dual_out);
EXECUTORCH_LIBRARY(slm, "rms_norm.out", slm::rms_norm_out);
EXECUTORCH_LIBRARY(slm, "rotary.out", slm::rotary_out);
EXECUTORCH_LIBRARY(slm, "silu.out", slm::silu_out);
