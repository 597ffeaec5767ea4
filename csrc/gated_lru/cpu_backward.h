// The backward half of cpu.cpp; included there, inside its unnamed namespace.

constexpr int64_t kMaxFramesPerState = 16;  // rows of scratch below

// Gates and states of the frames of one chunk, recomputed by a walk forward.
template <class K>
struct Chunk {
  using S = typename K::S;
  typename K::Vector before[kMaxFramesPerState + 1];  // h_{t-1}; one more row for the chunk's last state
  alignas(64) S i[kMaxFramesPerState][kMaxBlock], r[kMaxFramesPerState][kMaxBlock];
  alignas(64) S magnitude[kMaxFramesPerState][kMaxBlock], beta[kMaxFramesPerState][kMaxBlock];
};

// What a lane adds up for the parameters' gradients: over the frames of a chunk in S, over chunks in double, since
// thousands of frames added one by one would lose digits.
template <class T>
struct Sums {
  static constexpr int64_t count = 4;
  alignas(64) T r_dl[kMaxBlock], r_dphi[kMaxBlock], dgate_x[kMaxBlock], dgate_a[kMaxBlock];

  template <class U>
  void add(const Sums<U>& other, int64_t width) {
    TRECVIT_VECTORIZE
    for (int64_t j = 0; j < width; ++j) {
      r_dl[j] += other.r_dl[j];
      r_dphi[j] += other.r_dphi[j];
      dgate_x[j] += other.dgate_x[j];
      dgate_a[j] += other.dgate_a[j];
    }
  }
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
    const typename K::Vector& h = chunk.before[k];
    if (t + 1 < end) {
      prefetch_at<K>(x + p.x.frame_stride, half, width);
      prefetch(gate_x + p.gate_x.frame_stride, width);
      prefetch(gate_a + p.gate_a.frame_stride, width);
    }
    typename K::Vector& after = chunk.before[k + 1];
    S *i = chunk.i[k], *r = chunk.r[k], *magnitude = chunk.magnitude[k], *beta = chunk.beta[k];
    open_gates<K>(gate_x, lanes.bias_x, width, i);
    open_gates<K>(gate_a, lanes.bias_a, width, r);
    TRECVIT_VECTORIZE
    for (int64_t j = 0; j < width; ++j) {
      const Gates<S> g = gates_of<S, K::convex>(i[j], r[j], lanes.decay[j], reset);
      magnitude[j] = g.magnitude;
      beta[j] = g.beta;
      const Number<S> x_t = load_at<K>(x, half, j);
      const S scale = g.beta * g.i;
      Number<S> h_before = h.get(j);
      h_before.re = select(reset, S(0), h_before.re);  // whatever it held, NaN too
      if constexpr (K::complex) h_before.im = select(reset, S(0), h_before.im);
      after.set(j, advance<S, K::complex>(decay_of<S, K::complex>(g, lanes.phase(j)), h_before,
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
                    const Chunk<K>& chunk, typename K::Vector& carry, Sums<typename K::S>& sums) {
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
    const typename K::Vector&before = chunk.before[k], &after = chunk.before[k + 1];
    const S *i = chunk.i[k], *r = chunk.r[k], *magnitude = chunk.magnitude[k], *beta = chunk.beta[k];
    TRECVIT_VECTORIZE
    for (int64_t j = 0; j < width; ++j) {
      Number<S> G = output_gradient<K, true>(dy, v, dv, after.get(j), half, j);
      const Number<S> later = carry.get(j);
      G.re += later.re;
      if constexpr (K::complex) G.im += later.im;
      const Gates<S> g = {i[j], r[j], magnitude[j], beta[j]};
      const Number<S> a = decay_of<S, K::complex>(g, lanes.phase(j));
      const StepGradient<S> d = step_backward<S, K::complex, K::convex>(
          g, a, load_at<K>(x, half, j), before.get(j), G, lanes.decay[j], lanes.phase(j), reset);
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
    if (reset) carry.fill(width, S(0));
  }
}

// The adjoint recurrence alone over a segment from a zero carry, and the product of its decays.
template <class K>
void summarise_backward(const GatedLruBackward& p, const Lanes<K>& lanes, Segment segment, typename K::Vector& carry,
                        typename K::Vector& product) {
  using S = typename K::S;
  const int64_t width = lanes.block.width, half = lanes.half;
  for (int64_t t = segment.end - 1; t >= segment.begin; --t) {
    const auto* dy = lanes.row(p.dy, t);
    const auto* gate_a = lanes.row(p.gate_a, t);
    const auto* v = K::mixer ? lanes.row(p.v, t) : nullptr;
    alignas(64) S r[kMaxBlock];
    open_gates<K>(gate_a, lanes.bias_a, width, r);
    TRECVIT_VECTORIZE
    for (int64_t j = 0; j < width; ++j) {
      const Gates<S> g = gates_of<S, K::convex>(S(0), r[j], lanes.decay[j], false);
      const Number<S> a = decay_of<S, K::complex>(g, lanes.phase(j));
      Number<S> G = output_gradient<K, false>(dy, v, nullptr, {S(0), S(0)}, half, j);
      const Number<S> later = carry.get(j);
      G.re += later.re;
      if constexpr (K::complex) G.im += later.im;
      carry.set(j, pull_back<S, K::complex>(a, G));
      product.set(j, pull_back<S, K::complex>(a, product.get(j)));
    }
    if (resets_at(p, lanes.block.batch, t)) {
      carry.fill(width, S(0));
      product.fill(width, S(0));
    }
  }
}

template <class K>
void backward(const GatedLruBackward& p, const typename K::S* decay, const Blocks& blocks) {
  using S = typename K::S;
  using Vector = typename K::Vector;
  const int64_t step = p.frames_per_state, saved = (p.frames - 1) / step, gates = p.rows * p.channels;
  const int64_t per_sum = p.batch * p.segments * gates;
  Workspace workspace(Sums<S>::count * per_sum * int64_t(sizeof(S))), factors(p.channels * int64_t(sizeof(double)));
  S* partial = static_cast<S*>(workspace.data);  // per kind of sum: (batch, segments, rows * channels)
  double* factor = static_cast<double*>(factors.data);

  // Time is walked backwards: the first segment walked is the last one in time.
  const auto segment_of = [&](int64_t s) { return segment_at(p.segments - 1 - s, p.segments, p.frames, step); };
  const auto start = [&](const Lanes<K>& lanes, int64_t s, Vector& carry) {
    carry.read(s == 0 ? lanes.state(p, p.dh_last, 0, 1) : nullptr, lanes.half, 1, lanes.block.width);
  };
  const auto summarise = [&](int64_t block, int64_t s, Vector& carry, Vector& product) {
    const Lanes<K> lanes(p, decay, blocks.at(block));
    start(lanes, s, carry);
    product.fill(lanes.block.width, S(1));
    summarise_backward<K>(p, lanes, segment_of(s), carry, product);
  };
  const auto replay = [&](int64_t block, int64_t s, const Vector* from) {
    const Lanes<K> lanes(p, decay, blocks.at(block));
    const int64_t width = lanes.block.width;
    const Segment segment = segment_of(s);
    Chunk<K> chunk;
    Sums<double> sums = {};
    Vector carry;
    if (from) {
      carry = *from;
    } else {
      start(lanes, s, carry);
    }
    for (int64_t begin = (segment.end - 1) / step * step; begin >= segment.begin; begin -= step) {
      const int64_t end = min_of(begin + step, segment.end);
      chunk.before[0].read(begin == 0 ? lanes.state(p, p.h0, 0, 1) : lanes.state(p, p.states, begin / step - 1, saved),
                           lanes.half, 1, width);
      recompute_chunk<K>(p, lanes, begin, end, chunk);
      Sums<S> of_chunk = {};
      backward_chunk<K>(p, lanes, begin, end, chunk, carry, of_chunk);
      sums.add(of_chunk, width);
    }
    if (segment.begin == 0) carry.write(lanes.state(p, p.dh0, 0, 1), lanes.half, 1, width);
    S* to = partial + (lanes.block.batch * p.segments + s) * gates + lanes.block.lane;
    for (int64_t j = 0; j < width; ++j) {
      to[j] = S(sums.r_dl[j]);
      to[per_sum + j] = S(sums.r_dphi[j]);
      to[2 * per_sum + j] = S(sums.dgate_x[j]);
      to[3 * per_sum + j] = S(sums.dgate_a[j]);
    }
  };
  walk_segments<Vector>(blocks.count(), p.segments, p.threads, summarise, replay, never_cuts);

  // da_param = sum of r dl times d(decay)/d(a_param) = -c sigmoid(a_param).
  for (int64_t c = 0; c < p.channels; ++c)
    factor[c] = -kDecayExponent * sigmoid(double(static_cast<const S*>(p.a_param)[c]));
  const int64_t rows = p.batch * p.segments * p.rows;
  reduce_rows<S>(partial, rows, p.channels, static_cast<S*>(p.da_param), factor, p.threads);
  reduce_rows<S>(partial + per_sum, rows, p.channels, static_cast<S*>(p.da_imag), nullptr, p.threads);
  reduce_rows<S>(partial + 2 * per_sum, rows, p.channels, static_cast<S*>(p.dgate_x_bias), nullptr, p.threads);
  reduce_rows<S>(partial + 3 * per_sum, rows, p.channels, static_cast<S*>(p.dgate_a_bias), nullptr, p.threads);
}
