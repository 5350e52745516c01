#include "tests/engine/kernels/attention_case.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <random>

#include "engine/tensor/convert.h"

namespace hyserve::kernels::testing {

using tensor::DType;

namespace {

constexpr int kBlock = 64;

// A byte image of f32 or bf16 elements, all NaN at first.
class Image {
 public:
  Image(int64_t elements, DType dtype) : dtype_(dtype), bytes_(elements * tensor::SizeOf(dtype)) {
    for (int64_t i = 0; i < elements; ++i) Set(i, std::numeric_limits<float>::quiet_NaN());
  }
  void Set(int64_t i, float value) {
    if (dtype_ == DType::kF32) {
      std::memcpy(bytes_.data() + 4 * i, &value, 4);
    } else {
      const uint16_t bits = tensor::FloatToBf16(value);
      std::memcpy(bytes_.data() + 2 * i, &bits, 2);
    }
  }
  void SetRow(int64_t i, const float* values, int count) {
    for (int d = 0; d < count; ++d) Set(i + d, values[d]);
  }
  const std::vector<char>& bytes() const { return bytes_; }

 private:
  const DType dtype_;
  std::vector<char> bytes_;
};

KeyValues RandomKeyValues(Random& random, const AttentionShape& shape, int tokens) {
  KeyValues kv;
  kv.head_dim = shape.head_dim;
  kv.v_head_dim = shape.v_head_dim;
  kv.keys = Rounded(random.Normal(int64_t{tokens} * shape.head_dim), shape.cache_dtype);
  kv.values = Rounded(random.Normal(int64_t{tokens} * shape.v_head_dim), shape.cache_dtype);
  return kv;
}

}  // namespace

std::string AttentionShape::Name() const {
  return "h" + std::to_string(num_heads) + "_g" + std::to_string(num_kv_heads) + "_d" +
         std::to_string(head_dim) + "_v" + std::to_string(v_head_dim) + "_w" +
         std::to_string(window) + "_" + std::string(tensor::Name(cache_dtype));
}

AttentionShape OnDevice(const TestDevice& device, AttentionShape shape) {
  shape.activation_dtype = device.activation();
  if (shape.activation_dtype == DType::kBF16) shape.cache_dtype = DType::kBF16;
  return shape;
}

AttentionWorld::AttentionWorld(const AttentionShape& shape, std::vector<int> sequence_lengths,
                               uint64_t seed)
    : shape_(shape), lengths_(std::move(sequence_lengths)) {
  for (size_t sequence = 0; sequence < lengths_.size(); ++sequence) {
    Random random(seed + 1000 * sequence);
    const int64_t length = lengths_[sequence];
    for (int g = 0; g < shape.num_kv_heads; ++g) {
      pages_.push_back(RandomKeyValues(random, shape, lengths_[sequence]));
      window_.push_back(RandomKeyValues(random, shape, lengths_[sequence]));
    }
    q_.push_back(Rounded(random.Normal(length * q_cols(), 1.5f), shape.activation_dtype));
    gates_.push_back(Rounded(random.Normal(2 * length * out_cols()), shape.activation_dtype));
  }
  Random random(seed + 1);
  window_sink_ = random.Normal(shape.num_heads);
  sparse_sink_ = random.Normal(shape.num_heads);
}

AttentionStep::AttentionStep(TestDevice& device, const AttentionWorld& world,
                             std::vector<StepRows> rows, uint64_t page_seed)
    : rows_(std::move(rows)) {
  BuildBatch(device, world, page_seed);
  BuildPages(device, world);
  BuildWindow(device, world);
  BuildActivations(device, world);
}

void AttentionStep::BuildBatch(TestDevice& device, const AttentionWorld& world,
                               uint64_t page_seed) {
  std::vector<int32_t> positions;
  std::vector<int32_t> row_seq;
  std::vector<int32_t> slab_index;
  row_begin_.push_back(0);
  int stride = 1;
  for (const StepRows& seq : rows_) {
    stride = std::max(stride, (seq.first_position + seq.num_rows + kBlock - 1) / kBlock);
  }
  for (size_t s = 0; s < rows_.size(); ++s) {
    const StepRows& seq = rows_[s];
    first_position_.push_back(seq.first_position);
    row_begin_.push_back(row_begin_.back() + seq.num_rows);
    slab_index.push_back(static_cast<int32_t>(rows_.size() - 1 - s));
    for (int i = 0; i < seq.num_rows; ++i) {
      positions.push_back(seq.first_position + i);
      row_seq.push_back(static_cast<int32_t>(s));
    }
    batch_.max_rows_per_seq = std::max(batch_.max_rows_per_seq, seq.num_rows);
    batch_.max_context = std::max(batch_.max_context, seq.first_position + seq.num_rows);
  }
  // Pages in random places; entries past a sequence's context are never to be followed.
  std::vector<int32_t> places(rows_.size() * stride);
  std::iota(places.begin(), places.end(), 0);
  std::mt19937_64 engine(page_seed);
  std::shuffle(places.begin(), places.end(), engine);
  page_table_ = places;
  for (size_t s = 0; s < rows_.size(); ++s) {
    const int blocks = (rows_[s].first_position + rows_[s].num_rows + kBlock - 1) / kBlock;
    for (int b = blocks; b < stride; ++b) page_table_[s * stride + b] = -1;
  }
  batch_.num_seqs = static_cast<int>(rows_.size());
  batch_.num_rows = row_begin_.back();
  batch_.row_begin = row_begin_.data();
  batch_.first_position = first_position_.data();
  batch_.positions = device.UploadArray(positions);
  batch_.row_seq = device.UploadArray(row_seq);
  batch_.device_row_begin = device.UploadArray(row_begin_);
  batch_.device_first_position = device.UploadArray(first_position_);
  batch_.page_table = device.UploadArray(page_table_);
  batch_.page_table_stride = stride;
  batch_.slab_index = device.UploadArray(slab_index);
}

void AttentionStep::BuildPages(TestDevice& device, const AttentionWorld& world) {
  const AttentionShape& shape = world.shape();
  const int64_t k_slice = int64_t{shape.num_kv_heads} * kBlock * shape.head_dim;
  const int64_t slice = k_slice + int64_t{shape.num_kv_heads} * kBlock * shape.v_head_dim;
  const int64_t num_blocks = static_cast<int64_t>(page_table_.size());
  Image image(num_blocks * slice, shape.cache_dtype);
  for (size_t s = 0; s < rows_.size(); ++s) {
    for (int g = 0; g < shape.num_kv_heads; ++g) {
      const KeyValues& kv = world.pages(rows_[s].sequence, g);
      for (int64_t t = 0; t < rows_[s].first_position + rows_[s].num_rows; ++t) {
        const int64_t base = page_table_[s * batch_.page_table_stride + t / kBlock] * slice;
        const int64_t slot = g * kBlock + t % kBlock;
        image.SetRow(base + slot * shape.head_dim, kv.keys.data() + t * shape.head_dim,
                     shape.head_dim);
        image.SetRow(base + k_slice + slot * shape.v_head_dim,
                     kv.values.data() + t * shape.v_head_dim, shape.v_head_dim);
      }
    }
  }
  pages = {device.UploadArray(image.bytes()), shape.cache_dtype, num_blocks, shape.num_kv_heads,
           shape.head_dim, shape.v_head_dim};
}

void AttentionStep::BuildWindow(TestDevice& device, const AttentionWorld& world) {
  const AttentionShape& shape = world.shape();
  const int64_t size = static_cast<int64_t>(tensor::SizeOf(shape.cache_dtype));
  const int64_t k_elements = int64_t{shape.num_kv_heads} * shape.window * shape.head_dim;
  const int64_t v_elements = int64_t{shape.num_kv_heads} * shape.window * shape.v_head_dim;
  const int64_t front = 16;  // rings of other layers
  const int64_t slab = front + k_elements + v_elements;
  Image image(slab * static_cast<int64_t>(rows_.size()), shape.cache_dtype);
  std::vector<float> k_rows, v_rows;
  for (size_t s = 0; s < rows_.size(); ++s) {
    const int64_t base = slab * static_cast<int64_t>(rows_.size() - 1 - s) + front;
    const int64_t first = rows_[s].first_position;
    for (int g = 0; g < shape.num_kv_heads; ++g) {
      const KeyValues& kv = world.window(rows_[s].sequence, g);
      for (int64_t t = std::max<int64_t>(0, first - shape.window); t < first; ++t) {
        const int64_t slot = g * shape.window + t % shape.window;
        image.SetRow(base + slot * shape.head_dim, kv.keys.data() + t * shape.head_dim,
                     shape.head_dim);
        image.SetRow(base + k_elements + slot * shape.v_head_dim,
                     kv.values.data() + t * shape.v_head_dim, shape.v_head_dim);
      }
    }
    for (int64_t t = first; t < first + rows_[s].num_rows; ++t) {
      for (int g = 0; g < shape.num_kv_heads; ++g) {
        const KeyValues& kv = world.window(rows_[s].sequence, g);
        const float* k = kv.keys.data() + t * shape.head_dim;
        const float* v = kv.values.data() + t * shape.v_head_dim;
        k_rows.insert(k_rows.end(), k, k + shape.head_dim);
        v_rows.insert(v_rows.end(), v, v + shape.v_head_dim);
      }
    }
  }
  ring = {device.UploadArray(image.bytes()), shape.cache_dtype, slab * size, front * size,
          (front + k_elements) * size, shape.window, shape.num_kv_heads, shape.head_dim,
          shape.v_head_dim};
  step_k = device.Upload(k_rows, num_rows(), shape.num_kv_heads * shape.head_dim,
                         shape.cache_dtype);
  step_v = device.Upload(v_rows, num_rows(), shape.num_kv_heads * shape.v_head_dim,
                         shape.cache_dtype);
}

void AttentionStep::BuildActivations(TestDevice& device, const AttentionWorld& world) {
  std::vector<float> queries;
  std::vector<float> element[2];
  std::vector<float> head[2];
  for (const StepRows& seq : rows_) {
    for (int t = seq.first_position; t < seq.first_position + seq.num_rows; ++t) {
      const float* from = world.q(seq.sequence, t);
      queries.insert(queries.end(), from, from + world.q_cols());
      for (int which : {0, 1}) {
        const float* gate = world.element_gate(seq.sequence, t, which);
        element[which].insert(element[which].end(), gate, gate + world.out_cols());
        const std::vector<float> per_head = HeadGate(world, gate);
        head[which].insert(head[which].end(), per_head.begin(), per_head.end());
      }
    }
  }
  q = device.Activations(queries, num_rows(), world.q_cols());
  window_gate_element = device.Activations(element[0], num_rows(), world.out_cols());
  sparse_gate_element = device.Activations(element[1], num_rows(), world.out_cols());
  window_gate_head = device.Activations(head[0], num_rows(), world.shape().num_heads);
  sparse_gate_head = device.Activations(head[1], num_rows(), world.shape().num_heads);
  window_sink = device.UploadArray(world.window_sink());
  sparse_sink = device.UploadArray(world.sparse_sink());
}

std::vector<float> HeadGate(const AttentionWorld& world, const float* element_gate) {
  std::vector<float> gate;
  for (int h = 0; h < world.shape().num_heads; ++h) {
    gate.push_back(element_gate[h * world.shape().v_head_dim]);
  }
  return gate;
}

std::vector<int64_t> Range(int64_t begin, int64_t end) {
  std::vector<int64_t> positions;
  for (int64_t i = begin; i < end; ++i) positions.push_back(i);
  return positions;
}

}  // namespace hyserve::kernels::testing
