// One pass of an exact k-means over the rows of a block; cluster/native.py calls it and says what each argument is.
//
// Few centroids leave k-means bound by memory, so everything about a row is done while it is in the cache: whether its
// bound still holds, a screen against all centroids, the exact decision of near ties, its part of the sums. The screen
// is a product in bfloat16 tiles (Intel AMX) on a copy half the size of the rows, or in float32 where there are none.
// Whatever the screen, rounding is bounded, and what it leaves undecided is measured in float64 in one fixed order
// (`squared_distance`), so labels and sums are one function of rows and centroids.
//
// Legend: F features of a row, S the stride of a row of the copy, K centroids, P columns of the product with weights.
//
// Compiled with -ffp-contract=fast: products and sums of the screen are fused, exact ones are not.

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#if !defined(__x86_64__)
#error "written for x86-64 with AVX-512; elsewhere the package does without"
#endif
// Nothing here runs before lloyd_is_supported has said that the processor has AVX-512. Tiles are asked for apart.
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,amx-tile,amx-bf16")

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#define INLINE static inline __attribute__((always_inline))

typedef float Floats __attribute__((vector_size(64)));
typedef float LooseFloats __attribute__((vector_size(64), aligned(4)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Bits __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));
typedef float EightFloats __attribute__((vector_size(32), aligned(4)));
typedef double Doubles __attribute__((vector_size(64)));
typedef int64_t Longs __attribute__((vector_size(64)));
typedef int64_t LooseLongs __attribute__((vector_size(64), aligned(8)));

static const int GROUP = 32;  // rows that are screened together: two AMX tiles
static const int LOOKED_AT = 512;  // rows whose bounds are looked at together
static const double UNIT = 1.0 / (1 << 24);
static const float SLACK = 1e-6f;  // of a few float32 operations, several times over

extern "C" {

struct Rows {
    const float *exact;    // (n, F)
    const uint16_t *copy;  // (n, S) bfloat16, less the reference; null: the screen reads `exact`
    const float *norms;    // (n,) upper bounds of the lengths of what the screen reads
    int64_t width, stride;
};

struct Centroids {
    const float *exact;    // (K, F)
    const void *weights;   // bfloat16 tiles, or (F, P) float32
    const float *offsets;  // (K,)
    int64_t num, padded;   // padded: columns of the product
    int64_t rest;          // column of what bfloat16 lost of the first weight, 0: left out
    double square, linear, last, constant;  // tolerance: per squared norm, norm, score; and always
};

struct State {
    int32_t *labels;                           // (n,)
    float *room;                               // (n,) see cluster/bounds.py
    const float *slope_above, *shift_above;    // (K,) what has been spent of the room, at most
    const float *slope_below, *shift_below;    // (K,) and at least
    int64_t *sums, *counts;                    // (K, F), (K,); null: labels only
    double factor;                             // a feature of 1 adds so much to a sum
    int64_t known;                             // whether labels and sums hold an earlier pass
};
}

// ---- exact arithmetic: the same bits on every machine ------------------------------------------------------------

// Eight sums in float64, of every eighth feature each, in order; then halves. exact_distances does the same.
INLINE double squared_distance_of(const float *row, const float *centroid, int64_t width) {
    Doubles total = {};
    int64_t f = 0;
    for (; f + 8 <= width; f += 8) {
        Doubles x = __builtin_convertvector(*(const EightFloats *)(row + f), Doubles);
        Doubles c = __builtin_convertvector(*(const EightFloats *)(centroid + f), Doubles);
        Doubles square = (x - c) * (x - c);
        __asm__("" : "+m"(square));  // rounded by itself: a fused sum would differ between processors
        total += square;
    }
    for (int lane = 0; f < width; f++, lane++) {
        double d = (double)row[f] - (double)centroid[f], square = d * d;
        __asm__("" : "+m"(square));
        total[lane] += square;
    }
    double a = total[0] + total[4], b = total[1] + total[5], c = total[2] + total[6], d = total[3] + total[7];
    return (a + c) + (b + d);
}

// Whole numbers to the nearest even: adding this leaves the integer in the low bits of a double (below 2^51).
static const double MAGIC = 6755399441055744.0;

INLINE void add_row(int64_t *sums, const float *row, int64_t width, double factor, int64_t sign) {
    const Doubles magic = MAGIC - Doubles{};
    int64_t f = 0;
    for (; f + 8 <= width; f += 8) {
        Doubles x = __builtin_convertvector(*(const EightFloats *)(row + f), Doubles);
        Longs whole = (Longs)(x * factor + magic) - (Longs)magic;
        LooseLongs *at = (LooseLongs *)(sums + f);
        *at = sign > 0 ? *at + whole : *at - whole;
    }
    for (; f < width; f++) sums[f] += sign * (int64_t)std::nearbyint(row[f] * factor);
}

// ---- the screen ----------------------------------------------------------------------------------------------------

// Products of some rows with all weights in float32, 16 centroids side by side.
template <int rows, int columns>
INLINE void multiply_block(const float *const *at, int64_t width, const float *weights, int64_t padded, float *out) {
    Floats sums[rows][columns] = {};
    for (int64_t f = 0; f < width; f++) {
        const LooseFloats *w = (const LooseFloats *)(weights + f * padded);
        for (int c = 0; c < columns; c++) {
            Floats weight = w[c];
            for (int r = 0; r < rows; r++) sums[r][c] += weight * at[r][f];
        }
    }
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++) *(LooseFloats *)(out + r * padded + 16 * c) = sums[r][c];
}

INLINE void multiply_floats(const Rows *rows, const Centroids *centroids, const int32_t *due, int num, float *scores) {
    const int64_t width = rows->width, padded = centroids->padded;
    for (int r = 0; r < num; r += 4) {
        const float *at[4];
        for (int i = 0; i < 4; i++) at[i] = rows->exact + width * due[r + i < num ? r + i : num - 1];
        int64_t column = 0;
        const float *weights = (const float *)centroids->weights;
        for (; column + 32 <= padded; column += 32)
            multiply_block<4, 2>(at, width, weights + column, padded, scores + r * padded + column);
        for (; column < padded; column += 16)
            multiply_block<4, 1>(at, width, weights + column, padded, scores + r * padded + column);
    }
}

// Products of 32 rows of the copy with all weights. Tiles: 0 to 3 sums, 4 and 5 rows, 6 and 7 weights.
static void multiply_tiles(const uint16_t *rows, int64_t stride, const Centroids *centroids, float *scores) {
    __asm__ volatile("" ::: "memory");  // gcc does not know that loading a tile reads memory
    const int64_t steps = stride / 32, blocks = centroids->padded / 16, out = centroids->padded * 4;
    for (int64_t block = 0; block < blocks; block += 2) {
        const uint16_t *weights = (const uint16_t *)centroids->weights + block * steps * 512;
        const bool two = block + 1 < blocks;
        float *to = scores + 16 * block;
        _tile_zero(0);
        _tile_zero(1);
        if (two) {
            _tile_zero(2);
            _tile_zero(3);
            for (int64_t step = 0; step < steps; step++) {
                _tile_loadd(4, rows + 32 * step, stride * 2);
                _tile_loadd(6, weights + 512 * step, 64);
                _tile_dpbf16ps(0, 4, 6);
                _tile_loadd(5, rows + 16 * stride + 32 * step, stride * 2);
                _tile_dpbf16ps(1, 5, 6);
                _tile_loadd(7, weights + 512 * (steps + step), 64);
                _tile_dpbf16ps(2, 4, 7);
                _tile_dpbf16ps(3, 5, 7);
            }
            _tile_stored(2, to + 16, out);
            _tile_stored(3, to + 16 * centroids->padded + 16, out);
        } else {
            for (int64_t step = 0; step < steps; step++) {
                _tile_loadd(6, weights + 512 * step, 64);
                _tile_loadd(4, rows + 32 * step, stride * 2);
                _tile_dpbf16ps(0, 4, 6);
                _tile_loadd(5, rows + 16 * stride + 32 * step, stride * 2);
                _tile_dpbf16ps(1, 5, 6);
            }
        }
        _tile_stored(0, to, out);
        _tile_stored(1, to + 16 * centroids->padded, out);
    }
}

static void begin_tiles() {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t columns[16];
        uint8_t rows[16];
    } tiles = {};
    tiles.palette = 1;
    for (int t = 0; t < 8; t++) tiles.columns[t] = 64, tiles.rows[t] = 16;
    __asm__ volatile("" : "+m"(tiles));  // nor that all of this is read
    _tile_loadconfig(&tiles);
}

static void end_tiles() { _tile_release(); }


// ---- what the scores say -------------------------------------------------------------------------------------------

// Transposes a square of 16 x 16, so that the scores of 16 rows with one centroid lie side by side.
INLINE void transpose(Floats *square) {
    static const Ints low[4] = {
        {0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23},
        {0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27},
        {0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29},
        {0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30}};
    static const Ints high[4] = {
        {8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31},
        {4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31},
        {2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31},
        {1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31}};
#pragma GCC unroll 4
    for (int stage = 0; stage < 4; stage++) {
        const int step = 8 >> stage;
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) {
            if (i & step) continue;
            const Floats one = square[i], two = square[i + step];
            square[i] = __builtin_shuffle(one, two, low[stage]);
            square[i + step] = __builtin_shuffle(one, two, high[stage]);
        }
    }
}

// Of 16 rows: the smallest score, how far others must be above it, by how much they are at least, and the label.
struct Verdict {
    Floats best, tolerance, gap;
    Ints label;
};

INLINE Verdict judge(const float *scores, const Centroids *centroids, Floats norm) {
    Floats best = 3e38f - Floats{}, second = best;
    Ints label = {};
    const int64_t row = centroids->padded;
    for (int64_t first = 0; first < centroids->num; first += 16) {
        Floats square[16];
        for (int r = 0; r < 16; r++) {
            square[r] = *(const LooseFloats *)(scores + r * row + first);
            if (centroids->rest) square[r] += *(const LooseFloats *)(scores + r * row + first + centroids->rest);
        }
        transpose(square);
        const int num = centroids->num - first < 16 ? (int)(centroids->num - first) : 16;
        for (int k = 0; k < num; k++) {
            const Floats score = square[k] + centroids->offsets[first + k];
            const Floats larger = score < best ? best : score;
            second = larger < second ? larger : second;
            label = score < best ? (int32_t)(first + k) - Ints{} : label;
            best = score < best ? score : best;
        }
    }
    const Floats size = best < 0.0f ? -best : best;
    Verdict found = {best, {}, {}, label};
    found.tolerance = norm * (norm * (float)centroids->square + (float)centroids->linear) +
                      size * (float)(2.0 * centroids->last) + (float)centroids->constant;
    found.tolerance *= 1.0f + SLACK;
    found.gap = (second - best) * (float)(1.0 - 2.0 * centroids->last) - found.tolerance;
    return found;
}

// ---- one row -------------------------------------------------------------------------------------------------------

struct Decided {
    int32_t label;
    float gap;  // |x - c_j|^2 - |x - c_label|^2 is at least so much for every other centroid j
};

// Rounding leaves more than one centroid: they are measured, and the lower number wins an exact tie.
INLINE Decided decide(
    const float *row, const float *scores, const Centroids *centroids, int64_t width, float best, float tolerance) {
    const float limit = best + tolerance * (float)(1.0 + 4.0 * centroids->last + 2.0 * SLACK);
    double least = INFINITY, next = INFINITY, others = INFINITY;
    int32_t label = 0;
    for (int64_t k = 0; k < centroids->num; k++) {
        float score = scores[k];
        if (centroids->rest) score += scores[k + centroids->rest];
        score += centroids->offsets[k];
        if (score <= limit) {
            const double distance = squared_distance_of(row, centroids->exact + k * width, width);
            if (distance < least) {
                next = least, least = distance, label = (int32_t)k;
            } else if (distance < next) {
                next = distance;
            }
        } else if (score < others) {
            others = score;
        }
    }
    const double error = (double)(width + 8) * 0x1p-50 * (least + next);
    const double exact_gap = next == INFINITY ? INFINITY : next - least - error;
    const double other_gap = (others - best) * (1.0 - 2.0 * centroids->last) - tolerance;
    double smaller = exact_gap < other_gap ? exact_gap : other_gap;
    smaller = smaller < 3e38 ? smaller : 3e38;
    return {label, (float)smaller};
}

INLINE void settle(const Rows *rows, const State *state, int64_t i, Decided now) {
    const int32_t old = state->labels[i];
    if (state->sums && !(state->known && old == now.label)) {
        const int64_t width = rows->width;
        const float *row = rows->exact + i * width;
        add_row(state->sums + now.label * width, row, width, state->factor, 1);
        state->counts[now.label]++;
        if (state->known) {
            add_row(state->sums + old * width, row, width, state->factor, -1);
            state->counts[old]--;
        }
    }
    state->labels[i] = now.label;
    if (state->room) {
        const float gap = now.gap > 0.0f ? now.gap * (1.0f - SLACK) : -1e-30f;
        state->room[i] = gap + (rows->norms[i] * state->slope_below[now.label] + state->shift_below[now.label]);
    }
}

INLINE void settle_group(
    const Rows *rows, const Centroids *centroids, const State *state, const int32_t *due, int num,
    const float *scores) {
    Floats norm = {};
    for (int i = 0; i < num; i++) norm[i] = rows->norms[due[i]];
    const Verdict found = judge(scores, centroids, norm);
    for (int i = 0; i < num; i++) {
        const float *row = rows->exact + due[i] * rows->width;
        if (found.gap[i] <= 0.0f || found.label[i] != state->labels[due[i]])
            for (int64_t f = 0; f < rows->width && f < 512; f += 16) __builtin_prefetch(row + f);
    }
    for (int i = 0; i < num; i++) {
        Decided now = {found.label[i], found.gap[i]};
        if (!(now.gap > 0.0f))
            now = decide(
                rows->exact + due[i] * rows->width, scores + i * centroids->padded, centroids, rows->width,
                found.best[i], found.tolerance[i]);
        settle(rows, state, due[i], now);
    }
}

// ---- all rows from first to last -----------------------------------------------------------------------------------

INLINE void assign_rows(
    const Rows *rows, const Centroids *centroids, const State *state, int64_t first, int64_t last, float *scores,
    uint16_t *gathered) {
    int32_t due[LOOKED_AT];
    Rows from = *rows;
    State to = *state;
    for (int64_t start = first; start < last; start += LOOKED_AT) {
        const int stop = (int)(last - start < LOOKED_AT ? last - start : LOOKED_AT);
        from.exact = rows->exact + start * rows->width;
        from.norms = rows->norms + start;
        from.copy = rows->copy ? rows->copy + start * rows->stride : nullptr;
        to.labels = state->labels + start;
        to.room = state->room ? state->room + start : nullptr;
        int num = 0;
        if (state->known && state->room) {
            for (int i = 0; i < stop; i++) {
                const int32_t label = to.labels[i];
                due[num] = i;
                num += to.room[i] <= from.norms[i] * state->slope_above[label] + state->shift_above[label];
            }
        } else {
            for (; num < stop; num++) due[num] = num;
        }
        for (int group = 0; group < num; group += GROUP) {
            const int32_t *some = due + group;
            const int size = num - group < GROUP ? num - group : GROUP;
            if (from.copy) {
                const uint16_t *tile = from.copy + some[0] * rows->stride;
                if (size < GROUP || some[GROUP - 1] - some[0] != GROUP - 1) {
                    for (int i = 0; i < size; i++)
                        memcpy(gathered + i * rows->stride, from.copy + some[i] * rows->stride, 2 * rows->stride);
                    tile = gathered;
                }
                multiply_tiles(tile, rows->stride, centroids, scores);
            } else {
                multiply_floats(&from, centroids, some, size, scores);
            }
            for (int half = 0; half < size; half += 16)
                settle_group(
                    &from, centroids, &to, some + half, size - half < 16 ? size - half : 16,
                    scores + half * centroids->padded);
        }
    }
}

INLINE void load_rows(
    const float *exact, int64_t num, int64_t width, const float *reference, int64_t stride, uint16_t *copy,
    float *norms, double *found) {
    Bits largest = {};
    float longest = 0.0f, most_lost = 0.0f;
    const float factor = (float)(1.0 + (width + 8) * UNIT);
    for (int64_t i = 0; i < num; i++) {
        const float *row = exact + i * width;
        Floats square = {}, centred_square = {}, lost_square = {};
        for (int64_t f = 0; f < (copy ? stride : width); f += 16) {  // zeros from F to S
            Floats x = {}, r = {};
            if (f + 16 <= width) {
                x = *(const LooseFloats *)(row + f);
                if (copy) r = *(const LooseFloats *)(reference + f);
            } else {
                for (int lane = 0; f + lane < width; lane++) {
                    x[lane] = row[f + lane];
                    if (copy) r[lane] = reference[f + lane];
                }
            }
            Bits magnitude = (Bits)x & 0x7fffffffu;  // their order is that of the numbers, and NaN is above all
            largest = magnitude > largest ? magnitude : largest;
            square += x * x;
            if (copy) {
                Floats centred = x - r;
                Bits bits = (Bits)centred;
                bits += 0x7fffu + ((bits >> 16) & 1u);
                *(Halves *)(copy + i * stride + f) = __builtin_convertvector(bits >> 16, Halves);
                Floats lost = centred - (Floats)(bits & 0xffff0000u);
                centred_square += centred * centred;
                lost_square += lost * lost;
            }
        }
        float sums[3] = {};
        for (int lane = 0; lane < 16; lane++) {
            sums[0] += square[lane];
            sums[1] += centred_square[lane];
            sums[2] += lost_square[lane];
        }
        const float norm = std::sqrt(sums[0]) * factor + 1e-20f;
        longest = norm > longest ? norm : longest;
        norms[i] = copy ? std::sqrt(sums[1]) * factor + 1e-20f : norm;
        const float lost = (std::sqrt(sums[2]) * factor + 1e-20f) / norms[i];
        most_lost = lost > most_lost ? lost : most_lost;
    }
    uint32_t most = 0;
    for (int lane = 0; lane < 16; lane++) most = largest[lane] > most ? largest[lane] : most;
    float magnitude;
    memcpy(&magnitude, &most, 4);
    found[0] = magnitude, found[1] = longest, found[2] = copy ? most_lost : 0.0;
}

INLINE void measure_rows(
    const float *rows, int64_t num, int64_t width, const float *centroids, const int32_t *labels, double *out) {
    for (int64_t i = 0; i < num; i++)
        out[i] = squared_distance_of(rows + i * width, centroids + (labels ? labels[i] : 0) * width, width);
}

// ---- what Python calls --------------------------------------------------------------------------------------------

extern "C" {

int64_t lloyd_is_supported() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
}

// Whether this processor has bfloat16 tiles and the kernel lets this process use them.
int64_t lloyd_has_tiles() {
    unsigned a, b, c, d;
    __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(0));
    const bool tiles = (d >> 22 & 1) && (d >> 24 & 1);
    const long ask_for_state = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return tiles && syscall(SYS_arch_prctl, ask_for_state, tile_data) == 0;
}

void lloyd_load(
    const float *exact, int64_t num, int64_t width, const float *reference, int64_t stride, uint16_t *copy,
    float *norms, double *found) {
    load_rows(exact, num, width, reference, stride, copy, norms, found);
}

void lloyd_measure(
    const float *rows, int64_t num, int64_t width, const float *centroids, const int32_t *labels, double *out) {
    measure_rows(rows, num, width, centroids, labels, out);
}

// Returns 0, or 1 when there is no memory for the scores of a group.
int64_t lloyd_assign(const Rows *rows, const Centroids *centroids, const State *state, int64_t first, int64_t last) {
    float *scores = (float *)aligned_alloc(64, sizeof(float) * GROUP * centroids->padded);
    uint16_t *gathered = rows->copy ? (uint16_t *)aligned_alloc(64, sizeof(uint16_t) * GROUP * rows->stride) : nullptr;
    const bool missing = !scores || (rows->copy && !gathered);
    if (!missing) {
        if (rows->copy) {
            memset(gathered, 0, sizeof(uint16_t) * GROUP * rows->stride);
            begin_tiles();
        }
        assign_rows(rows, centroids, state, first, last, scores, gathered);
        if (rows->copy) end_tiles();
    }
    free(scores);
    free(gathered);
    return missing;
}
}
