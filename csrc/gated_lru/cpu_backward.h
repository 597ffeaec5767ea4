// The backward half of cpu.cpp; included there, inside its unnamed namespace.

constexpr int64_t kMaxFramesPerState = 16;  // rows of scratch below

// Gates and states of the frames of one chunk, recomputed by a walk forward.
template <class K>
struct Chunk {
  using S = typename K::S;
  Numbers<K> before[kMaxFramesPerState + 1];  // h_{t-1}; one more row for the chunk's last state
  alignas(64) S i[kMaxFramesPerState][kMaxBlock], r[kMaxFramesPerState][kMaxBlock];
  alignas(64) S magnitude[kMaxFramesPerState][kMaxBlock], beta[kMaxFramesPerState][kMaxBlock];
};

// What a lane adds up over time for the parameters' gradients.
template <class K>
struct Sums {
  using S = typename K::S;
  static constexpr int64_t count = 4;
  alignas(64) S r_dl[kMaxBlock], r_dphi[kMaxBlock], dgate_x[kMaxBlock], dgate_a[kMaxBlock];
};

template <class K>
void recompute_chunk(const GatedLruBackward& p, const Lanes<K>& lanes, int64_t begin, int64_t end, Chunk<K>& chunk) {
  using S = typename K::S;
  const int64_t width = lanes.block.width, half = lanes.half;
  for (int64_t t = begin; t < end; ++t) {
    const bool reset = resets_at(p, lanes.block.batch, t);
    const auto* x = lanes.row(p.x, t);
    const auto* gate_x = lanes.row(p.gate_x, t);
    const auto* gate_a = lanes.row(p.gate_a, t);
    const int64_t k = t - begin;
    const Numbers<K>& h = chunk.before[k];
    if (t + 1 < end) {
      prefetch_at<K>(x + p.x.frame_stride, half, width);
      prefetch(gate_x + p.gate_x.frame_stride, width);
      prefetch(gate_a + p.gate_a.frame_stride, width);
    }
    Numbers<K>& after = chunk.before[k + 1];
    S *i = chunk.i[k], *r = chunk.r[k], *magnitude = chunk.magnitude[k], *beta = chunk.beta[k];
    TRECVIT_VECTORIZE
    for (int64_t j = 0; j < width; ++j) {
      S logit_x = load(gate_x[j]), logit_a = load(gate_a[j]);
      if constexpr (K::mixer) {
        logit_x += lanes.bias_x[j];
        logit_a += lanes.bias_a[j];
      }
      const Gates<S> g = gates_of<S, K::convex>(logit_x, logit_a, lanes.decay[j], reset);
      i[j] = g.i;
      r[j] = g.r;
      magnitude[j] = g.magnitude;
      beta[j] = g.beta;
      const Number<S> x_t = load_at<K>(x, half, j);
      const S scale = g.beta * g.i;
      Number<S> h_before = h.get(j);
      h_before.re = select(reset, S(0), h_before.re);  // whatever it held, NaN too
      if constexpr (K::complex) h_before.im = select(reset, S(0), h_before.im);
      after.set(j, advance<S, K::complex>(decay_of<S, K::complex>(g, lanes.theta[j]), h_before,
                                          {scale * x_t.re, scale * x_t.im}));
    }
  }
}

// dz -> dy, and dv where it is wanted: z = y gelu(v).
template <class K, bool Write>
TRECVIT_INLINE typename K::S gate_gradient(typename K::S dz, typename K::S y, typename K::S v, typename K::IO* dv) {
  const auto gelu = gelu_tanh(v);
  if constexpr (Write) store(*dv, dz * y * gelu.slope);
  return dz * gelu.value;
}

template <class K, bool Write>
TRECVIT_INLINE Number<typename K::S> output_gradient(const typename K::IO* dy, const typename K::IO* v,
                                                     typename K::IO* dv, Number<typename K::S> y, int64_t half,
                                                     int64_t j) {
  Number<typename K::S> G = load_at<K>(dy, half, j);
  if constexpr (K::mixer) {
    const auto v_t = load_at<K>(v, half, j);
    G.re = gate_gradient<K, Write>(G.re, y.re, v_t.re, dv + j);
    if constexpr (K::complex) G.im = gate_gradient<K, Write>(G.im, y.im, v_t.im, dv + half + j);
  }
  return G;
}

// Walks a recomputed chunk backwards. carry = conj(a_{t+1}) G_{t+1} comes in for the frame after the chunk and goes
// out for the frame before it.
template <class K>
void backward_chunk(const GatedLruBackward& p, const Lanes<K>& lanes, int64_t begin, int64_t end,
                    const Chunk<K>& chunk, Numbers<K>& carry, Sums<K>& sums) {
  using S = typename K::S;
  const int64_t width = lanes.block.width, half = lanes.half;
  for (int64_t t = end - 1; t >= begin; --t) {
    const bool reset = resets_at(p, lanes.block.batch, t);
    const auto* dy = lanes.row(p.dy, t);
    const auto* x = lanes.row(p.x, t);
    const auto* v = K::mixer ? lanes.row(p.v, t) : nullptr;
    auto* dv = K::mixer ? lanes.row(p.dv, t) : nullptr;
    auto* dx = lanes.row(p.dx, t);
    auto* dgate_x = lanes.row(p.dgate_x, t);
    auto* dgate_a = lanes.row(p.dgate_a, t);
    const int64_t k = t - begin;
    if (t > 0) {
      prefetch_at<K>(dy - p.dy.frame_stride, half, width);
      if (K::mixer) prefetch_at<K>(v - p.v.frame_stride, half, width);
    }
    const Numbers<K>&before = chunk.before[k], &after = chunk.before[k + 1];
    const S *i = chunk.i[k], *r = chunk.r[k], *magnitude = chunk.magnitude[k], *beta = chunk.beta[k];
    TRECVIT_VECTORIZE
    for (int64_t j = 0; j < width; ++j) {
      Number<S> G = output_gradient<K, true>(dy, v, dv, after.get(j), half, j);
      const Number<S> later = carry.get(j);
      G.re += later.re;
      if constexpr (K::complex) G.im += later.im;
      const Gates<S> g = {i[j], r[j], magnitude[j], beta[j]};
      const Number<S> a = decay_of<S, K::complex>(g, lanes.theta[j]);
      const StepGradient<S> d = step_backward<S, K::complex, K::convex>(
          g, a, load_at<K>(x, half, j), before.get(j), G, lanes.decay[j], lanes.theta[j], reset);
      store_at<K>(dx, half, j, d.dx);
      store(dgate_x[j], d.dgate_x);
      store(dgate_a[j], d.dgate_a);
      sums.r_dl[j] += d.r_dl;
      if constexpr (K::complex) sums.r_dphi[j] += d.r_dphi;
      if constexpr (K::mixer) {
        sums.dgate_x[j] += d.dgate_x;
        sums.dgate_a[j] += d.dgate_a;
      }
      carry.set(j, pull_back<S, K::complex>(a, G));
    }
    if (reset) carry.fill(width, {S(0), S(0)});
  }
}

// The adjoint recurrence alone over a segment from a zero carry, and the product of its decays.
template <class K>
void summarise_backward(const GatedLruBackward& p, const Lanes<K>& lanes, Segment segment, Numbers<K>& carry,
                        Numbers<K>& product) {
  using S = typename K::S;
  const int64_t width = lanes.block.width, half = lanes.half;
  for (int64_t t = segment.end - 1; t >= segment.begin; --t) {
    const auto* dy = lanes.row(p.dy, t);
    const auto* gate_a = lanes.row(p.gate_a, t);
    const auto* v = K::mixer ? lanes.row(p.v, t) : nullptr;
    TRECVIT_VECTORIZE
    for (int64_t j = 0; j < width; ++j) {
      S logit_a = load(gate_a[j]);
      if constexpr (K::mixer) logit_a += lanes.bias_a[j];
      const Gates<S> g = gates_of<S, K::convex>(S(0), logit_a, lanes.decay[j], false);
      const Number<S> a = decay_of<S, K::complex>(g, lanes.theta[j]);
      Number<S> G = output_gradient<K, false>(dy, v, nullptr, {S(0), S(0)}, half, j);
      const Number<S> later = carry.get(j);
      G.re += later.re;
      if constexpr (K::complex) G.im += later.im;
      carry.set(j, pull_back<S, K::complex>(a, G));
      product.set(j, pull_back<S, K::complex>(a, product.get(j)));
    }
    if (resets_at(p, lanes.block.batch, t)) {
      carry.fill(width, {S(0), S(0)});
      product.fill(width, {S(0), S(0)});
    }
  }
}

// Second stage of the parameters' gradients: `sums` holds (batch, segments, rows * channels) of what each lane added
// up; they are added in this order, whatever the number of threads.
template <class S>
void reduce_sums(const S* sums, int64_t count, int64_t channels, S* out, const S* factor, int threads) {
  if (!out) return;
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t first = 0; first < channels; first += kMinBlock) {
    const int64_t width = min_of(kMinBlock, channels - first);
    S total[kMinBlock] = {};
    for (int64_t row = 0; row < count; ++row) {
      TRECVIT_VECTORIZE
      for (int64_t j = 0; j < width; ++j) total[j] += sums[row * channels + first + j];
    }
    for (int64_t j = 0; j < width; ++j) out[first + j] = factor ? total[j] * factor[first + j] : total[j];
  }
}

template <class K>
void backward(const GatedLruBackward& p, const typename K::S* decay, const Blocks& blocks) {
  using S = typename K::S;
  const int64_t count = blocks.count(), segments = p.segments, saved = (p.frames - 1) / p.frames_per_state;
  const int64_t slots = segments - 1, gates = p.rows * p.channels, lanes_total = p.batch * gates * K::parts;
  const int64_t per_sum = p.batch * segments * gates;
  Workspace workspace((2 * slots * lanes_total + Sums<K>::count * per_sum + p.channels) * int64_t(sizeof(S)));
  S* partial = static_cast<S*>(workspace.data);
  S* products = partial + Sums<K>::count * per_sum;
  S* carries = products + slots * lanes_total;  // slot s: what enters segment s from the segment after it
  S* factor = carries + slots * lanes_total;

#pragma omp parallel for schedule(static) num_threads(p.threads) if (slots > 0)
  for (int64_t task = 0; task < count * slots; ++task) {
    const int64_t s = task % slots;
    const Lanes<K> lanes(p, decay, blocks.at(task / slots));
    const int64_t width = lanes.block.width, at = lanes.state(p, s, slots);
    Numbers<K> carry, product;
    if (s + 1 == slots) {
      carry.read(p.dh_last, lanes.state(p, 0, 1), lanes.half, width);
    } else {
      carry.fill(width, {S(0), S(0)});
    }
    product.fill(width, {S(1), S(0)});
    summarise_backward<K>(p, lanes, segment_at(s + 1, segments, p.frames, p.frames_per_state), carry, product);
    carry.write(carries, at, lanes.half, width);
    product.write(products, at, lanes.half, width);
  }
#pragma omp parallel for schedule(static) num_threads(p.threads) if (slots > 1)
  for (int64_t task = 0; task < (slots > 1 ? count : 0); ++task) {
    const Lanes<K> lanes(p, decay, blocks.at(task));
    const int64_t width = lanes.block.width;
    Numbers<K> carry, product, local;
    carry.read(carries, lanes.state(p, slots - 1, slots), lanes.half, width);
    for (int64_t s = slots - 2; s >= 0; --s) {
      const int64_t at = lanes.state(p, s, slots);
      product.read(products, at, lanes.half, width);
      local.read(carries, at, lanes.half, width);
      for (int64_t j = 0; j < width; ++j)
        carry.set(j, advance<S, K::complex>(product.get(j), carry.get(j), local.get(j)));
      carry.write(carries, at, lanes.half, width);
    }
  }
#pragma omp parallel for schedule(static) num_threads(p.threads)
  for (int64_t task = 0; task < count * segments; ++task) {
    const int64_t s = task % segments;
    const Lanes<K> lanes(p, decay, blocks.at(task / segments));
    const int64_t width = lanes.block.width;
    const Segment segment = segment_at(s, segments, p.frames, p.frames_per_state);
    Chunk<K> chunk;
    Numbers<K> carry;
    Sums<K> sums = {};
    if (s + 1 == segments) {
      carry.read(p.dh_last, lanes.state(p, 0, 1), lanes.half, width);
    } else {
      carry.read(carries, lanes.state(p, s, slots), lanes.half, width);
    }
    const int64_t step = p.frames_per_state;
    for (int64_t begin = (segment.end - 1) / step * step; begin >= segment.begin; begin -= step) {
      const int64_t end = min_of(begin + step, segment.end);
      if (begin == 0) {
        chunk.before[0].read(p.h0, lanes.state(p, 0, 1), lanes.half, width);
      } else {
        chunk.before[0].read(p.states, lanes.state(p, begin / step - 1, saved), lanes.half, width);
      }
      recompute_chunk<K>(p, lanes, begin, end, chunk);
      backward_chunk<K>(p, lanes, begin, end, chunk, carry, sums);
    }
    if (segment.begin == 0) carry.write(p.dh0, lanes.state(p, 0, 1), lanes.half, width);
    const int64_t at = (lanes.block.batch * segments + s) * gates + lanes.block.lane;
    for (int64_t j = 0; j < width; ++j) {
      partial[at + j] = sums.r_dl[j];
      partial[per_sum + at + j] = sums.r_dphi[j];
      partial[2 * per_sum + at + j] = sums.dgate_x[j];
      partial[3 * per_sum + at + j] = sums.dgate_a[j];
    }
  }
  // da_param = sum of r dl times d(decay)/d(a_param) = -c sigmoid(a_param).
  for (int64_t c = 0; c < p.channels; ++c)
    factor[c] = S(-kDecayExponent) * sigmoid(static_cast<const S*>(p.a_param)[c]);
  const int64_t rows = p.batch * segments * p.rows;
  reduce_sums<S>(partial, rows, p.channels, static_cast<S*>(p.da_param), factor, p.threads);
  reduce_sums<S>(partial + per_sum, rows, p.channels, static_cast<S*>(p.da_imag), nullptr, p.threads);
  reduce_sums<S>(partial + 2 * per_sum, rows, p.channels, static_cast<S*>(p.dgate_x_bias), nullptr, p.threads);
  reduce_sums<S>(partial + 3 * per_sum, rows, p.channels, static_cast<S*>(p.dgate_a_bias), nullptr, p.threads);
}
