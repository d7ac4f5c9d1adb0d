/* Pillow's resize of 8-bit images, to the bit, for processors with AVX2: 8 numbers at a time where Pillow takes one.
 *
 * As in Pillow (src/libImaging/Resample.c): the weights of a side's pixels in float64, scaled to integers of 22 bits,
 * first all rows, then all columns, each sum rounded and clipped to 8 bits. Integer sums do not depend on their order, so
 * the results are equal, not close. Nothing here is shared: any number of threads may call it.
 */
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define AVX2 __attribute__((target("avx2")))

enum { BITS = 22, HALF = 1 << (BITS - 1), PIXEL = 4, TAPS = 2, LANES = 8, BLOCK = 16, BICUBIC = 3 };

/* The weights of every pixel of a side: those of pixel i are weight[i * most], for count[i] pixels from first[i] on. */
typedef struct {
    int most;
    int *first, *count;
    int32_t *weight;
} Side;

static double bilinear(double x) {
    x = fabs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

static double bicubic(double x) {
    const double a = -0.5;
    x = fabs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
    return 0.0;
}

static void free_side(Side *side) {
    free(side->first);
    free(side->count);
    free(side->weight);
}

static int make_side(Side *side, int in, int out, int filter) {
    double scale = (double)in / out, stretch = scale < 1.0 ? 1.0 : scale;
    double support = (filter == BICUBIC ? 2.0 : 1.0) * stretch;
    side->most = (int)ceil(support) * 2 + 1;
    side->first = malloc(out * sizeof(int));
    side->count = malloc(out * sizeof(int));
    side->weight = calloc((size_t)out * side->most, sizeof(int32_t));
    double *exact = malloc(side->most * sizeof(double));
    int ok = side->first && side->count && side->weight && exact;
    for (int i = 0; ok && i < out; i++) {
        double center = (i + 0.5) * scale, sum = 0.0, shrink = 1.0 / stretch;
        int first = (int)(center - support + 0.5), last = (int)(center + support + 0.5);
        if (first < 0) first = 0;
        if (last > in) last = in;
        for (int k = 0; k < last - first; k++) {
            double x = (k + first - center + 0.5) * shrink;
            exact[k] = filter == BICUBIC ? bicubic(x) : bilinear(x);
            sum += exact[k];
        }
        for (int k = 0; k < last - first; k++) {
            double part = sum != 0.0 ? exact[k] / sum : exact[k];
            side->weight[(size_t)i * side->most + k] = (int32_t)((part < 0 ? -0.5 : 0.5) + part * (1 << BITS));
        }
        side->first[i] = first;
        side->count[i] = last - first;
    }
    free(exact);
    return ok;
}

/* 8 bytes as 8 numbers. */
AVX2 static inline __m256i wide(const uint8_t *bytes) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)bytes)); }

AVX2 static inline __m256i times(const uint8_t *bytes, __m256i weight) { return _mm256_mullo_epi32(wide(bytes), weight); }

/* 8 sums as 8 numbers of 16 bits; what does not fit is clipped, and clipped again on its way to 8 bits. */
AVX2 static inline __m128i rounded(__m256i sum) {
    sum = _mm256_srai_epi32(sum, BITS);
    return _mm_packs_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
}

AVX2 static inline void put_pixel(uint8_t *out, __m256i sum) {
    __m128i pixel = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    pixel = _mm_srai_epi32(_mm_add_epi32(pixel, _mm_set1_epi32(HALF)), BITS);
    pixel = _mm_packus_epi16(_mm_packs_epi32(pixel, pixel), pixel);
    int32_t bytes = _mm_cvtsi128_si32(pixel);
    memcpy(out, &bytes, PIXEL);
}

/* Some rows of `in` to as many of `out`, both of 4 bytes a pixel. A vector holds 2 neighbouring pixels, whose products are
 * added up at the end. Where the last vector would read beyond the row, the first starts further left, with zeros for
 * weights. `spread` is room for a pixel's weights, each 4 times. */
AVX2 static void resize_rows(const uint8_t *in, int in_width, uint8_t *out, int out_width, int rows, const Side *side,
                             int32_t *spread) {
    size_t in_row = (size_t)in_width * PIXEL, out_row = (size_t)out_width * PIXEL;
    for (int x = 0; x < out_width; x++) {
        int steps = (side->count[x] + TAPS - 1) / TAPS, first = side->first[x], start = first;
        if (start > in_width - steps * TAPS) start = in_width - steps * TAPS;
        memset(spread, 0, (size_t)steps * LANES * sizeof(int32_t));
        for (int k = 0; k < side->count[x]; k++)
            for (int c = 0; c < PIXEL; c++)
                spread[(first - start + k) * PIXEL + c] = side->weight[(size_t)x * side->most + k];
        const uint8_t *source = in + (size_t)start * PIXEL;
        uint8_t *target = out + (size_t)x * PIXEL;
        int y = 0;
        for (; y + 4 <= rows; y += 4, source += 4 * in_row, target += 4 * out_row) {
            __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
            for (int step = 0; step < steps; step++) {
                __m256i weight = _mm256_loadu_si256((const void *)(spread + step * LANES));
                const uint8_t *bytes = source + step * LANES;
                a = _mm256_add_epi32(a, times(bytes, weight));
                b = _mm256_add_epi32(b, times(bytes + in_row, weight));
                c = _mm256_add_epi32(c, times(bytes + 2 * in_row, weight));
                d = _mm256_add_epi32(d, times(bytes + 3 * in_row, weight));
            }
            put_pixel(target, a);
            put_pixel(target + out_row, b);
            put_pixel(target + 2 * out_row, c);
            put_pixel(target + 3 * out_row, d);
        }
        for (; y < rows; y++, source += in_row, target += out_row) {
            __m256i a = _mm256_setzero_si256();
            for (int step = 0; step < steps; step++)
                a = _mm256_add_epi32(
                    a, times(source + step * LANES, _mm256_loadu_si256((const void *)(spread + step * LANES))));
            put_pixel(target, a);
        }
    }
}

/* One row of `out` from the `count` rows of `in`, all of `bytes` bytes. The last vectors overlap those before. */
AVX2 static void mix_rows(const uint8_t *in, int bytes, uint8_t *out, int count, const int32_t *weight) {
    for (int at = 0; at < bytes; at += 2 * LANES) {
        if (at > bytes - 2 * LANES) at = bytes - 2 * LANES;
        __m256i a = _mm256_set1_epi32(HALF), b = a;
        const uint8_t *source = in + at;
        for (int k = 0; k < count; k++, source += bytes) {
            __m256i each = _mm256_set1_epi32(weight[k]);
            a = _mm256_add_epi32(a, times(source, each));
            b = _mm256_add_epi32(b, times(source + LANES, each));
        }
        _mm_storeu_si128((void *)(out + at), _mm_packus_epi16(rounded(a), rounded(b)));
    }
}

AVX2 static void take_apart(const uint8_t *row, int width, uint8_t *red, uint8_t *green, uint8_t *blue) {
    for (int x = 0; x < width; x++) {
        red[x] = row[x * PIXEL];
        green[x] = row[x * PIXEL + 1];
        blue[x] = row[x * PIXEL + 2];
    }
}

int usable(void) { return __builtin_cpu_supports("avx2") != 0; }

/* The least width of an image that resize() takes. */
int least_width(int in_width, int out_width, int filter) {
    double scale = (double)in_width / out_width;
    return (int)ceil((filter == BICUBIC ? 2.0 : 1.0) * (scale < 1.0 ? 1.0 : scale)) * 2 + 1 + TAPS;
}

/* The image `in`, of 4 bytes a pixel, resized into `planes`: red, green and blue, one after the other. `filter` is 2
 * (bilinear) or 3 (bicubic). `in_width` must be at least least_width(), `out_width` at least 4. 0: no memory is left. */
int resize(const uint8_t *in, int in_width, int in_height, uint8_t *planes, int out_width, int out_height, int filter) {
    Side across = {0}, down = {0};
    size_t plane = (size_t)out_width * out_height;
    int bytes = out_width * PIXEL;
    uint8_t *narrow = in_width == out_width ? NULL : malloc((size_t)bytes * in_height), *row = malloc(bytes);
    int ok = row && make_side(&across, in_width, out_width, filter) && make_side(&down, in_height, out_height, filter);
    int32_t *spread = ok ? malloc((across.most + TAPS) * PIXEL * sizeof(int32_t)) : NULL;
    ok = ok && spread && (narrow || in_width == out_width);
    for (int y = 0; ok && narrow && y < in_height; y += BLOCK)
        resize_rows(in + (size_t)y * in_width * PIXEL, in_width, narrow + (size_t)y * bytes, out_width,
                    in_height - y < BLOCK ? in_height - y : BLOCK, &across, spread);
    const uint8_t *source = narrow ? narrow : in;
    for (int y = 0; ok && y < out_height; y++) {
        const uint8_t *mixed = source + (size_t)y * bytes;
        if (in_height != out_height) {
            mix_rows(source + (size_t)down.first[y] * bytes, bytes, row, down.count[y],
                     down.weight + (size_t)y * down.most);
            mixed = row;
        }
        uint8_t *red = planes + (size_t)y * out_width;
        take_apart(mixed, out_width, red, red + plane, red + 2 * plane);
    }
    free(spread);
    free(row);
    free(narrow);
    free_side(&across);
    free_side(&down);
    return ok;
}
