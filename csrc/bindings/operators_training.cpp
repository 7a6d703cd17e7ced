// torch.ops.wavenet.gated_layer and cross_entropy and their backward passes: training on the CPU. The schemas
// are in operators.cpp.
#include <tuple>

#include "bindings/arguments.h"
#include "cpu/train/block_cache.h"
#include "cpu/train/training_run.h"

namespace {

using namespace wavenet::binding;
using wavenet::cpu::GatedLayer;

// Runs on torch's own threads, so that a training step uses the same number of threads everywhere.
void parallel_for(int64_t count, const std::function<void(int64_t)>& work) {
  torch::stable::parallel_for(0, count, 1, [&](int64_t first, int64_t stop) {
    for (int64_t number = first; number < stop; ++number) work(number);
  });
}

// The arguments of both operators that are not tensors.
struct Settings {
  int64_t dilation, hop, start;
  bool linear, bf16;
};

ScalarType stored(const Settings& settings) {
  return settings.bf16 ? ScalarType::BFloat16 : ScalarType::Float;
}

// Tensors of at least this size use memory blocks that the cache can keep.
constexpr int64_t kBlockBytes = int64_t{1} << 20;

void release_block(void* begin) { wavenet::cpu::block_cache().release(begin); }

// The size in bytes of a contiguous tensor of float32 or bfloat16.
int64_t bytes_of(const std::vector<int64_t>& shape, ScalarType type) {
  int64_t bytes = type == ScalarType::BFloat16 ? 2 : 4;
  for (const int64_t size : shape) {
    require(size >= 0 && (size == 0 || bytes < (int64_t{1} << 60) / size), "a size is out of range: ", size);
    bytes *= size;
  }
  return bytes;
}

Tensor allocate_as(const Tensor& like, const std::vector<int64_t>& shape, ScalarType type) {
  const int64_t bytes = bytes_of(shape, type);
  if (bytes < kBlockBytes || !wavenet::cpu::block_cache().enabled()) return allocate(like, shape, type);
  std::vector<int64_t> strides(shape.size(), 1);
  for (size_t dim = shape.size(); dim-- > 1;) strides[dim - 1] = strides[dim] * shape[dim];
  void* begin = wavenet::cpu::block_cache().allocate(static_cast<size_t>(bytes));
  try {
    return torch::stable::from_blob(begin, shape, strides, like.device(), type, release_block);
  } catch (...) {
    release_block(begin);
    throw;
  }
}

// Each row of `channels` values must be contiguous; the distance between rows is arbitrary.
void check_rows(const char* name, const Tensor& rows, ScalarType type, const std::vector<int64_t>& shape) {
  check_kind(name, rows, type, kCpu);
  check_shape(name, rows, shape);
  require(rows.size(2) == 1 || rows.stride(2) == 1, name, " is not contiguous within a row");
}

struct Parameters {
  const Tensor &dilated_weight, &dilated_bias;
  const std::optional<Tensor>&output_weight, &output_bias;
  const std::optional<Tensor>& gate_bias;
};

// Checks the arguments that both operators share and fills in those fields of the layer.
GatedLayer make_layer(const Tensor& x, const Parameters& parameters, const Settings& settings) {
  require(wavenet::cpu::can_train(settings.bf16), "this processor has no native training in ",
          settings.bf16 ? "bf16" : "fp32");
  check("x", x, ScalarType::Float, {-1, -1, -1});
  GatedLayer layer{};
  layer.batch = x.size(0);
  layer.residual = x.size(2);
  check("dilated_bias", parameters.dilated_bias, ScalarType::Float, {-1});
  const int64_t branches = parameters.dilated_bias.size(0);
  require(branches > 0 && branches % 2 == 0, "dilated_bias has ", branches,
          " values: must be an even number, for filter and gate");
  check("dilated_weight", parameters.dilated_weight, ScalarType::Float, {branches, -1});
  const int64_t inputs = parameters.dilated_weight.size(1);
  require(layer.residual > 0 && inputs >= 2 * layer.residual && inputs % layer.residual == 0,
          "dilated_weight has ", inputs, " inputs: must be ", layer.residual, " for each of 2 taps or more");
  layer.channels = branches / 2;
  layer.taps = inputs / layer.residual;
  layer.dilation = settings.dilation;
  require(settings.dilation > 0 && settings.dilation < (int64_t{1} << 30), "dilation = ", settings.dilation,
          ": is out of range");
  layer.steps = x.size(1) - (layer.taps - 1) * layer.dilation;
  require(layer.batch > 0 && layer.steps > 0, "x is ", shape_text(x),
          ": shorter than the receptive field of the layer");
  layer.last = !parameters.output_weight.has_value();
  if (!layer.last) {
    check("output_weight", *parameters.output_weight, ScalarType::Float, {layer.residual, layer.channels});
    require(parameters.output_bias.has_value(), "output_bias is missing");
    check("output_bias", *parameters.output_bias, ScalarType::Float, {layer.residual});
    layer.residual_bias = parameters.output_bias->const_data_ptr<float>();
  }
  if (parameters.gate_bias.has_value()) {
    const Tensor& values = *parameters.gate_bias;
    check_rows("gate_bias", values, ScalarType::Float, {layer.batch, -1, branches});
    require(values.size(1) > 0 && settings.hop > 0, "gate_bias has no frames, or hop is not positive");
    layer.bias = {values.const_data_ptr<float>(),
                  values.stride(0),
                  values.size(1),
                  settings.hop,
                  settings.start,
                  settings.linear};
    layer.frame_stride = values.stride(1);
  }
  layer.x = x.const_data_ptr<float>();
  layer.dilated_bias = parameters.dilated_bias.const_data_ptr<float>();
  return layer;
}

wavenet::cpu::LayerWeights weights_of(const Parameters& parameters) {
  return {parameters.dilated_weight.const_data_ptr<float>(),
          parameters.output_weight.has_value() ? parameters.output_weight->const_data_ptr<float>() : nullptr};
}

void bind_gates(GatedLayer& layer, const char* name, const Tensor& gates, ScalarType type) {
  check_rows(name, gates, type, {layer.batch, -1, layer.channels});
  layer.kept = gates.size(1);
  require(layer.kept <= layer.steps, name, " has ", layer.kept, " steps: the layer has ", layer.steps);
  layer.gates = const_cast<void*>(gates.const_data_ptr());
  layer.gates_batch_stride = gates.stride(0);
  layer.gates_row_stride = gates.stride(1);
}

std::tuple<Tensor, Tensor> gated_layer(const Tensor& x, const Tensor& dilated_weight,
                                       const Tensor& dilated_bias, const std::optional<Tensor>& output_weight,
                                       const std::optional<Tensor>& output_bias,
                                       const std::optional<Tensor>& gate_bias, const Tensor& gates,
                                       int64_t dilation, int64_t hop, int64_t start, bool linear, bool bf16) {
  return marked([&]() -> std::tuple<Tensor, Tensor> {
    const Settings settings{dilation, hop, start, linear, bf16};
    const Parameters parameters{dilated_weight, dilated_bias, output_weight, output_bias, gate_bias};
    GatedLayer layer = make_layer(x, parameters, settings);
    bind_gates(layer, "gates", gates, stored(settings));
    Tensor halves = allocate_as(x, {layer.batch, layer.steps, 2 * layer.channels}, stored(settings));
    Tensor y = allocate_as(x, {layer.batch, layer.last ? 0 : layer.steps, layer.residual}, ScalarType::Float);
    layer.halves = halves.mutable_data_ptr();
    layer.y = y.mutable_data_ptr<float>();
    wavenet::cpu::forward(layer, weights_of(parameters), bf16, parallel_for);
    return {halves, y};
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> gated_layer_backward(
    const Tensor& x, const Tensor& dilated_weight, const Tensor& dilated_bias,
    const std::optional<Tensor>& output_weight, const std::optional<Tensor>& output_bias,
    const std::optional<Tensor>& gate_bias, const Tensor& halves, const Tensor& dgates,
    const std::optional<Tensor>& dy, int64_t dilation, int64_t hop, int64_t start, bool linear, bool bf16) {
  return marked([&]() -> std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> {
    const Settings settings{dilation, hop, start, linear, bf16};
    const Parameters parameters{dilated_weight, dilated_bias, output_weight, output_bias, gate_bias};
    GatedLayer layer = make_layer(x, parameters, settings);
    const int64_t branches = 2 * layer.channels;
    bind_gates(layer, "dgates", dgates, stored(settings));
    check("halves", halves, stored(settings), {layer.batch, layer.steps, branches});
    layer.halves = const_cast<void*>(halves.const_data_ptr());
    require(layer.last || dy.has_value(), "dy is missing");
    if (!layer.last) {
      check("dy", *dy, ScalarType::Float, {layer.batch, layer.steps, layer.residual});
      layer.dy = dy->const_data_ptr<float>();
    }
    const auto floats = [&](std::vector<int64_t> shape) { return allocate_as(x, shape, ScalarType::Float); };
    Tensor dactivation = allocate_as(x, {layer.batch, layer.steps, branches}, stored(settings));
    Tensor dx = floats({layer.batch, x.size(1), layer.residual});
    Tensor dilated = floats({branches, layer.taps * layer.residual}), bias = floats({branches});
    const int64_t outputs = layer.last ? 0 : layer.residual;
    Tensor output = floats({outputs, layer.channels}), residual = floats({outputs});
    const int64_t frames = gate_bias.has_value() ? layer.bias.frames : 0;
    Tensor dgate_bias = floats({layer.batch, frames, branches});
    layer.dactivation = dactivation.mutable_data_ptr();
    layer.dx = dx.mutable_data_ptr<float>();
    const wavenet::cpu::LayerGradients gradients{
        dilated.mutable_data_ptr<float>(), bias.mutable_data_ptr<float>(), output.mutable_data_ptr<float>(),
        residual.mutable_data_ptr<float>(), frames > 0 ? dgate_bias.mutable_data_ptr<float>() : nullptr};
    wavenet::cpu::backward(layer, weights_of(parameters), gradients, bf16, parallel_for);
    return {dx, dilated, bias, output, residual, dgate_bias};
  });
}

// Checks the arguments that both operators of the loss share.
wavenet::cpu::Losses make_losses(const Tensor& logits, const Tensor& targets, int64_t ignored, bool bf16) {
  require(wavenet::cpu::can_train(bf16), "this processor has no native training in ", bf16 ? "bf16" : "fp32");
  check("logits", logits, bf16 ? ScalarType::BFloat16 : ScalarType::Float, {-1, -1});
  wavenet::cpu::Losses losses{};
  losses.rows = logits.size(0);
  losses.classes = logits.size(1);
  check("targets", targets, ScalarType::Long, {losses.rows});
  losses.logits = logits.const_data_ptr();
  losses.targets = targets.const_data_ptr<int64_t>();
  losses.ignored = ignored;
  for (int64_t row = 0; row < losses.rows; ++row) {
    const int64_t target = losses.targets[row];
    require(target == ignored || (target >= 0 && target < losses.classes), "target ", target,
            " is out of range: there are ", losses.classes, " classes");
  }
  return losses;
}

std::tuple<Tensor, Tensor> cross_entropy(const Tensor& logits, const Tensor& targets, int64_t ignored) {
  return marked([&]() -> std::tuple<Tensor, Tensor> {
    const bool bf16 = logits.scalar_type() == ScalarType::BFloat16;
    wavenet::cpu::Losses losses = make_losses(logits, targets, ignored, bf16);
    Tensor nats = allocate_as(logits, {losses.rows}, ScalarType::Float);
    Tensor normalizers = allocate_as(logits, {losses.rows}, ScalarType::Float);
    losses.nats = nats.mutable_data_ptr<float>();
    losses.normalizers = normalizers.mutable_data_ptr<float>();
    wavenet::cpu::cross_entropy(losses, bf16, parallel_for);
    return {nats, normalizers};
  });
}

Tensor cross_entropy_backward(const Tensor& logits, const Tensor& targets, const Tensor& nats,
                              const Tensor& normalizers, const Tensor& dnats, int64_t ignored) {
  return marked([&] {
    const bool bf16 = logits.scalar_type() == ScalarType::BFloat16;
    wavenet::cpu::Losses losses = make_losses(logits, targets, ignored, bf16);
    check("nats", nats, ScalarType::Float, {losses.rows});
    check("normalizers", normalizers, ScalarType::Float, {losses.rows});
    check("dnats", dnats, ScalarType::Float, {losses.rows});
    losses.nats = const_cast<float*>(nats.const_data_ptr<float>());
    losses.normalizers = const_cast<float*>(normalizers.const_data_ptr<float>());
    losses.dnats = dnats.const_data_ptr<float>();
    Tensor dlogits = allocate_as(logits, {losses.rows, losses.classes}, logits.scalar_type());
    losses.dlogits = dlogits.mutable_data_ptr();
    wavenet::cpu::cross_entropy_backward(losses, bf16, parallel_for);
    return dlogits;
  });
}

Tensor block(const Tensor& like, std::vector<int64_t> shape, bool bf16) {
  return marked([&] {
    require(like.is_cpu(), "like is not on the CPU: the block cache manages CPU memory only");
    return allocate_as(like, shape, bf16 ? ScalarType::BFloat16 : ScalarType::Float);
  });
}

bool can_train(bool bf16) {
  return marked([&] { return wavenet::cpu::can_train(bf16); });
}

void keep_blocks(bool on) {
  marked([&] { wavenet::cpu::block_cache().enable(on); });
}

int64_t block_bytes(bool idle) {
  return marked([&] {
    const wavenet::cpu::BlockCache::Usage usage = wavenet::cpu::block_cache().usage();
    return static_cast<int64_t>(idle ? usage.idle : usage.used);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(wavenet, CPU, m) {
  m.impl("gated_layer", TORCH_BOX(&gated_layer));
  m.impl("gated_layer_backward", TORCH_BOX(&gated_layer_backward));
  m.impl("cross_entropy", TORCH_BOX(&cross_entropy));
  m.impl("cross_entropy_backward", TORCH_BOX(&cross_entropy_backward));
  m.impl("cpu_block", TORCH_BOX(&block));
}

STABLE_TORCH_LIBRARY_IMPL(wavenet, CompositeExplicitAutograd, m) {
  m.impl("cpu_can_train", TORCH_BOX(&can_train));
  m.impl("cpu_keep_blocks", TORCH_BOX(&keep_blocks));
  m.impl("cpu_block_bytes", TORCH_BOX(&block_bytes));
}
