// The operators torch.ops.lconv_fast.graph_*: those of operators.cpp on a graph, data (batch, channels, nodes).
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "arguments.h"
#include "dispatch.h"
#include "graph.h"
#include "memory.h"

namespace lconv_fast {

namespace {

// What describes the graph in every schema, in this order: lconv_fast/ops/graph.py.
#define LCONV_GRAPH_SCHEMA                                                                                      \
  ", Tensor starts, Tensor sources, Tensor in_edges, Tensor out_starts, Tensor targets, Tensor out_edges, int " \
  "groups, bool incidence"
#define LCONV_GRAPH_PARAMETERS                                                                     \
  , const Tensor &starts, const Tensor &sources, const Tensor &in_edges, const Tensor &out_starts, \
      const Tensor &targets, const Tensor &out_edges, int64_t groups, bool incidence
#define LCONV_GRAPH_ARGUMENTS , starts, sources, in_edges, out_starts, targets, out_edges, groups, incidence

// Nodes first, then the channels of a node, contiguous.
Tensor empty_nodes(const Tensor& like, int64_t batch, int64_t channels, int64_t nodes) {
  return torch::stable::transpose(
      allocated({batch, nodes, channels}, like.scalar_type(),
                [&] { return torch::stable::new_empty(like, {batch, nodes, channels}, like.scalar_type()); }),
      1, 2);
}

// A GraphProblem and the tensors that its pointers borrow from.
struct CheckedGraph {
  GraphProblem problem;
  Tensor weights;

  Rows rows(const Tensor& starts, const Tensor& nodes, const Tensor& edges) const {
    for (const Tensor* t : {&starts, &nodes, &edges}) {
      STD_TORCH_CHECK(t->is_cpu() && t->dim() == 1 && t->scalar_type() == ScalarType::Long && t->is_contiguous() &&
                          t->size(0) == (t == &starts ? problem.nodes + 1 : problem.edges),
                      "lconv_fast: expected contiguous int64 tensors: starts (nodes + 1,), the others (edges,)");
    }
    const auto* first = static_cast<const int64_t*>(starts.data_ptr());
    bool ordered = first[0] == 0 && first[problem.nodes] == problem.edges;
    for (int64_t k = 0; k < problem.nodes; ++k) ordered &= first[k] <= first[k + 1];
    STD_TORCH_CHECK(ordered, "lconv_fast: expected starts that rise from 0 to the number of edges");
    return {first, static_cast<const int64_t*>(nodes.data_ptr()), static_cast<const int64_t*>(edges.data_ptr())};
  }

  View view(const Tensor& t, const char* name, int64_t channels) const {
    STD_TORCH_CHECK(t.is_cpu() && t.dim() == 3 && t.size(0) == problem.layer.batch && t.size(1) == channels &&
                        t.size(2) == problem.nodes,
                    "lconv_fast: the shape of ", name, " does not fit the other arguments");
    View v;
    v.data = t.data_ptr();
    v.batch_stride = t.stride(0);
    v.channel_stride = 1;
    v.stride[2] = t.stride(2);
    return v;
  }

  WeightView weight(const Tensor& w, const Tensor& data) const {
    const Problem& p = problem.layer;
    STD_TORCH_CHECK(w.dim() == 3 && w.is_cpu() && w.scalar_type() == data.scalar_type() &&
                        w.size(0) == p.generators + 1 && w.size(1) == p.out_channels * p.groups &&
                        w.size(2) == p.in_channels,
                    "lconv_fast: the shape or type of weight does not fit the other arguments");
    return {w.data_ptr(), w.stride(0), w.stride(1), w.stride(2)};
  }

  void take_weights(const Tensor& given) {
    const auto type = accumulate_type(problem.layer.scalar == Scalar::kDouble ? ScalarType::Double : ScalarType::Float);
    STD_TORCH_CHECK(given.is_cpu() && given.dim() == 2 && given.size(0) == problem.layer.generators &&
                        given.size(1) == problem.edges,
                    "lconv_fast: expected coefficients (n_L, edges)");
    weights = given;
    if (given.scalar_type() != type) {
      weights = allocated(sizes_of(given), type, [&] { return torch::stable::to(given, type); });
    }
    weights = made_contiguous(weights);
    problem.weights = weights.data_ptr();
  }
};

// Data whose channels are contiguous.
Tensor by_nodes(const Tensor& t) {
  STD_TORCH_CHECK(t.dim() == 3, "lconv_fast: expected a CPU tensor (batch, channels, nodes)");
  if (t.stride(1) == 1 || t.size(1) == 1) return t;
  return torch::stable::transpose(made_contiguous(torch::stable::transpose(t, 1, 2)), 1, 2);
}

int64_t per_group(int64_t channels, int64_t groups) {
  STD_TORCH_CHECK(groups >= 1 && channels % groups == 0, "lconv_fast: groups does not divide the channels");
  return channels / groups;
}

CheckedGraph check(const Tensor& data, int64_t generators, int64_t in_channels, int64_t out_channels,
                   bool identity LCONV_GRAPH_PARAMETERS) {
  STD_TORCH_CHECK(data.is_cpu() && data.dim() == 3 && data.size(2) >= 1 && starts.dim() == 1 && sources.dim() == 1,
                  "lconv_fast: expected a CPU tensor (batch, channels, nodes)");
  CheckedGraph c;
  Problem& p = c.problem.layer;
  p.scalar = scalar_of(data);
  p.ndim = 1;
  p.identity = identity;
  p.batch = data.size(0);
  p.groups = groups;
  p.in_channels = in_channels;
  p.out_channels = out_channels;
  p.generators = generators;
  for (int a = 0; a < kAxes; ++a) {
    p.grid[a] = p.array[a] = p.out[a] = a == 2 ? data.size(2) : 1;
    p.halo_low[a] = 0;
    p.step[a] = 1;
  }
  c.problem.nodes = data.size(2);
  c.problem.edges = sources.size(0);
  c.problem.incidence = incidence;
  c.problem.by_target = c.rows(starts, sources, in_edges);
  c.problem.by_source = c.rows(out_starts, targets, out_edges);
  return c;
}

void check_found(bool valid) {
  STD_TORCH_CHECK(valid, "lconv_fast: the rows of the graph name nodes or edges that do not exist");
}

Tensor graph_apply(const Tensor& input, const Tensor& weight, const Tensor& coefficients,
                   std::optional<Tensor> bias LCONV_GRAPH_PARAMETERS, bool identity, bool transposed) {
  STD_TORCH_CHECK(weight.dim() == 3 && weight.size(0) >= 1, "lconv_fast: expected weight (n_L + 1, out, in / groups)");
  CheckedGraph c = check(input, weight.size(0) - 1, weight.size(2), per_group(weight.size(1), groups),
                         identity LCONV_GRAPH_ARGUMENTS);
  c.take_weights(coefficients);
  const Problem& p = c.problem.layer;
  const int64_t ins = p.in_channels * groups, outs = p.out_channels * groups, targets_ = transposed ? ins : outs;
  const WeightView w = c.weight(weight, input);
  std::optional<Tensor> shift;
  if (bias) {
    STD_TORCH_CHECK(
        bias->dim() == 1 && bias->size(0) == targets_ && bias->is_cpu() && bias->scalar_type() == input.scalar_type(),
        "lconv_fast: the shape or type of bias does not fit the other arguments");
    shift = made_contiguous(*bias);
  }
  const Tensor data = by_nodes(input);
  Tensor output = empty_nodes(input, p.batch, targets_, c.problem.nodes);
  advise_huge_pages(output.data_ptr(), output.numel() * static_cast<int64_t>(output.element_size()));
  if (output.numel() > 0) {
    check_found(active_kernels().graph->apply(c.problem, transposed, c.view(data, "input", transposed ? outs : ins), w,
                                              shift ? shift->data_ptr() : nullptr, c.view(output, "output", targets_)));
  }
  return output;
}

Tensor graph_gram(const Tensor& input, const Tensor& cotangent, const Tensor& coefficients LCONV_GRAPH_PARAMETERS,
                  bool identity) {
  STD_TORCH_CHECK(input.dim() == 3 && cotangent.dim() == 3 && coefficients.dim() == 2 &&
                      cotangent.scalar_type() == input.scalar_type(),
                  "lconv_fast: input, cotangent and coefficients do not fit each other");
  CheckedGraph c = check(input, coefficients.size(0), per_group(input.size(1), groups),
                         per_group(cotangent.size(1), groups), identity LCONV_GRAPH_ARGUMENTS);
  c.take_weights(coefficients);
  const Tensor f = by_nodes(input), g = by_nodes(cotangent);
  const View f_view = c.view(f, "input", input.size(1)), g_view = c.view(g, "cotangent", cotangent.size(1));
  const Integers sizes{coefficients.size(0) + 1, cotangent.size(1), c.problem.layer.in_channels};
  Tensor result = torch::stable::new_empty(input, sizes, input.scalar_type());
  if (result.numel() > 0) check_found(active_kernels().graph->gram(c.problem, f_view, g_view, result.data_ptr()));
  return result;
}

std::tuple<Tensor, Tensor> graph_backward(const Tensor& cotangent, const Tensor& input, const Tensor& weight,
                                          const Tensor& coefficients LCONV_GRAPH_PARAMETERS, bool identity) {
  STD_TORCH_CHECK(
      weight.dim() == 3 && weight.size(0) >= 1 && input.dim() == 3 && cotangent.scalar_type() == input.scalar_type(),
      "lconv_fast: expected weight (n_L + 1, out, in / groups), input and cotangent of one type");
  CheckedGraph c = check(input, weight.size(0) - 1, weight.size(2), per_group(weight.size(1), groups),
                         identity LCONV_GRAPH_ARGUMENTS);
  c.take_weights(coefficients);
  const Problem& p = c.problem.layer;
  const Tensor f = by_nodes(input), g = by_nodes(cotangent);
  const View f_view = c.view(f, "input", p.in_channels * groups);
  const View g_view = c.view(g, "cotangent", p.out_channels * groups);
  const WeightView w = c.weight(weight, input);
  Tensor features = empty_nodes(input, p.batch, p.in_channels * groups, c.problem.nodes);
  advise_huge_pages(features.data_ptr(), features.numel() * static_cast<int64_t>(features.element_size()));
  Tensor result = torch::stable::new_empty(weight, sizes_of(weight), weight.scalar_type());
  if (features.numel() > 0 && result.numel() > 0) {
    check_found(active_kernels().graph->backward(c.problem, g_view, f_view, w, c.view(features, "input", input.size(1)),
                                                 result.data_ptr()));
  } else {
    torch::stable::zero_(features);
    torch::stable::zero_(result);
  }
  return {features, result};
}

Tensor graph_correlate(const Tensor& input, const Tensor& weight, const Tensor& cotangent LCONV_GRAPH_PARAMETERS) {
  STD_TORCH_CHECK(weight.dim() == 3 && weight.size(0) >= 1 && cotangent.scalar_type() == input.scalar_type(),
                  "lconv_fast: expected weight (n_L + 1, out, in / groups), input and cotangent of one type");
  CheckedGraph c =
      check(input, weight.size(0) - 1, weight.size(2), per_group(weight.size(1), groups), false LCONV_GRAPH_ARGUMENTS);
  const Problem& p = c.problem.layer;
  const Tensor f = by_nodes(input), g = by_nodes(cotangent);
  const View f_view = c.view(f, "input", p.in_channels * groups);
  const View g_view = c.view(g, "cotangent", p.out_channels * groups);
  const WeightView w = c.weight(weight, input);
  const ScalarType type = accumulate_type(input.scalar_type());
  Tensor result = torch::stable::new_empty(input, {p.generators, c.problem.edges}, type);
  if (p.in_channels == 0 || p.out_channels == 0 || p.batch == 0) {
    torch::stable::zero_(result);
  } else if (result.numel() > 0) {
    check_found(active_kernels().graph->correlate(c.problem, f_view, w, g_view, result.data_ptr()));
  }
  return result;
}

STABLE_TORCH_LIBRARY_FRAGMENT(lconv_fast, m) {
  m.def("graph_apply(Tensor input, Tensor weight, Tensor coefficients, Tensor? bias" LCONV_GRAPH_SCHEMA
        ", bool identity, bool transposed) -> Tensor");
  m.def("graph_gram(Tensor input, Tensor cotangent, Tensor coefficients" LCONV_GRAPH_SCHEMA
        ", bool identity) -> Tensor");
  m.def("graph_correlate(Tensor input, Tensor weight, Tensor cotangent" LCONV_GRAPH_SCHEMA ") -> Tensor");
  m.def("graph_backward(Tensor cotangent, Tensor input, Tensor weight, Tensor coefficients" LCONV_GRAPH_SCHEMA
        ", bool identity) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(lconv_fast, CPU, m) {
  m.impl("graph_apply", TORCH_BOX(&graph_apply));
  m.impl("graph_gram", TORCH_BOX(&graph_gram));
  m.impl("graph_correlate", TORCH_BOX(&graph_correlate));
  m.impl("graph_backward", TORCH_BOX(&graph_backward));
}

}  // namespace
}  // namespace lconv_fast
