/* An NVML library for tests: eight healthy B200, and whatever a script says instead.
 *
 * The script is the file that SUPERV_FAKE_NVML names; it is read again when it changes. A line is
 *     CALL[/KEY] DEVICE ACTION [ARGUMENT…]
 * with DEVICE an index or *, and the last line that fits counts. Actions:
 *     value NUMBER…   what the call gives, in the order of its results
 *     text STRING     for calls that give a string
 *     rc NUMBER       what the call returns (an nvmlReturn_t)
 *     delay MS        the call takes so long, and gives what other lines say; CALL may be *
 *     hang            the call never returns, and no signal but KILL ends it
 *     open PATH       the call opens a file: in a dead mount it sleeps for good
 * KEY tells calls of one name apart: an NVML_FI_* id (or ID.SCOPE), ERROR.COUNTER.LOCATION of an
 * error counter, a link, a clock, the version of a struct.
 *
 * Layouts and symbols are those that nvidia-ml-py asks for.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_GPUS 16
#define LINES 512
#define VALUES 32
#define NOT_SUPPORTED 3
#define INSUFFICIENT_SIZE 7
#define NOT_FOUND 6
#define INVALID_ARGUMENT 2
#define VERSION_MISMATCH 25

typedef unsigned int u32;
typedef unsigned long long u64;

struct line {
    char call[80], device[8], action[8], text[256];
    int n;
    double v[VALUES];
};

struct answer {
    int rc, n, found;
    const double *v;
    const char *text;
};

static struct line lines[LINES];
static int count_lines;
static struct stat seen;
static int handles[MAX_GPUS];
static const char *buses[] = {"1B", "29", "45", "4E", "9D", "AC", "C1", "CC"};

static void load(void)
{
    const char *path = getenv("SUPERV_FAKE_NVML");
    struct stat now = {0};
    char text[1024];
    FILE *file;

    if (!path || stat(path, &now)) {
        count_lines = 0;
        memset(&seen, 0, sizeof seen);
        return;
    }
    if (now.st_ino == seen.st_ino && now.st_size == seen.st_size &&
        now.st_mtim.tv_sec == seen.st_mtim.tv_sec && now.st_mtim.tv_nsec == seen.st_mtim.tv_nsec)
        return;
    seen = now;
    count_lines = 0;
    if (!(file = fopen(path, "r")))
        return;
    while (fgets(text, sizeof text, file)) {
        struct line *line = &lines[count_lines];
        int at = 0;
        memset(line, 0, sizeof *line);
        if (sscanf(text, "%79s %7s %7s %n", line->call, line->device, line->action, &at) < 3)
            continue;
        snprintf(line->text, sizeof line->text, "%s", text + at);
        line->text[strcspn(line->text, "\n")] = 0;
        for (char *from = line->text, *end; line->n < VALUES; from = end) {
            double number = strtod(from, &end);
            if (end == from)
                break;
            line->v[line->n++] = number;
        }
        if (++count_lines == LINES)
            break;
    }
    fclose(file);
}

static void forever(void)
{
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, NULL);
    for (;;)
        pause();
}

/* What the script says of a call; hangs here where it shall. */
static struct answer look(const char *call, int device, const char *key)
{
    struct answer answer = {0};
    char keyed[80], index[8];

    load();
    snprintf(keyed, sizeof keyed, "%s/%s", call, key ? key : "");
    snprintf(index, sizeof index, "%d", device);
    for (int i = 0; i < count_lines; i++) {
        struct line *line = &lines[i];
        int slow = !strcmp(line->action, "delay");
        if (strcmp(line->call, call) && !(key && !strcmp(line->call, keyed)) &&
            !(slow && !strcmp(line->call, "*")))
            continue;
        if (strcmp(line->device, "*") && strcmp(line->device, index))
            continue;
        if (slow) {
            usleep((useconds_t)(1000 * line->v[0]));
            continue;
        }
        memset(&answer, 0, sizeof answer);
        answer.found = 1;
        answer.v = line->v;
        answer.n = line->n;
        answer.text = line->text;
        if (!strcmp(line->action, "rc"))
            answer.rc = (int)line->v[0];
        if (!strcmp(line->action, "hang"))
            answer.rc = -1;
        if (!strcmp(line->action, "open"))
            answer.rc = -2;
    }
    if (answer.rc == -1)
        forever();
    if (answer.rc == -2) {
        int fd = open(answer.text, O_RDONLY);
        if (fd >= 0)
            close(fd);
        answer.rc = 0;
    }
    return answer;
}

static int index_of(const void *handle)
{
    return (int)((const int *)handle - handles);
}

#define ASK(device, key)                                                                           \
    struct answer a = look(__func__, device, key);                                                 \
    if (a.rc)                                                                                      \
        return a.rc;
#define OF(key) ASK(index_of(device), key)
#define NUMBER(i, otherwise) (a.n > (i) ? a.v[i] : (double)(otherwise))

static void fill(char *into, u32 size, const struct answer *a, const char *otherwise)
{
    snprintf(into, size, "%s", a->found ? a->text : otherwise);
}

int nvmlInitWithFlags(u32 flags)
{
    (void)flags;
    ASK(-1, NULL)
    return 0;
}

int nvmlShutdown(void) { return 0; }

const char *nvmlErrorString(int code)
{
    static char text[32];
    snprintf(text, sizeof text, "error %d", code);
    return text;
}

int nvmlSystemGetDriverVersion(char *text, u32 size)
{
    ASK(-1, NULL)
    fill(text, size, &a, "580.95.05");
    return 0;
}

int nvmlSystemGetNVMLVersion(char *text, u32 size)
{
    ASK(-1, NULL)
    fill(text, size, &a, "13.580.95.05");
    return 0;
}

int nvmlSystemGetCudaDriverVersion_v2(int *version)
{
    ASK(-1, NULL)
    *version = (int)NUMBER(0, 13000);
    return 0;
}

int nvmlDeviceGetCount_v2(u32 *count)
{
    ASK(-1, NULL)
    *count = (u32)NUMBER(0, 8);
    return 0;
}

int nvmlDeviceGetHandleByIndex_v2(u32 index, void **handle)
{
    ASK((int)index, NULL)
    *handle = &handles[index];
    return 0;
}

int nvmlDeviceGetUUID(void *device, char *text, u32 size)
{
    char name[64];
    OF(NULL)
    snprintf(name, sizeof name, "GPU-0b200000-0000-0000-0000-00000000000%d", index_of(device));
    fill(text, size, &a, name);
    return 0;
}

int nvmlDeviceGetSerial(void *device, char *text, u32 size)
{
    char name[64];
    OF(NULL)
    snprintf(name, sizeof name, "165302500000%d", index_of(device));
    fill(text, size, &a, name);
    return 0;
}

int nvmlDeviceGetName(void *device, char *text, u32 size)
{
    OF(NULL)
    fill(text, size, &a, "NVIDIA B200");
    return 0;
}

int nvmlDeviceGetVbiosVersion(void *device, char *text, u32 size)
{
    OF(NULL)
    fill(text, size, &a, "97.00.88.00.0F");
    return 0;
}

int nvmlDeviceGetGspFirmwareVersion(void *device, char *text)
{
    OF(NULL)
    fill(text, 64, &a, "580.95.05");
    return 0;
}

struct pci {
    char legacy[16];
    u32 domain, bus, device, id, subsystem;
    char bus_id[32];
};

int nvmlDeviceGetPciInfo_v3(void *device, struct pci *info)
{
    OF(NULL)
    memset(info, 0, sizeof *info);
    if (a.found)
        fill(info->bus_id, sizeof info->bus_id, &a, "");
    else
        snprintf(info->bus_id, sizeof info->bus_id, "00000000:%s:00.0",
                 buses[index_of(device) % 8]);
    return 0;
}

struct field {
    u32 id, scope;
    int64_t at, latency;
    u32 type;
    int rc;
    union {
        double d;
        u64 ull;
        u32 ui;
        int si;
    } value;
};

/* Healthy values of the fields that are asked for; -1: not supported. */
static double healthy_field(u32 id)
{
    switch (id) {
    case 82: /* MEMORY_TEMP */
        return 41;
    case 164: /* NVLINK_GET_SPEED */
        return 53125;
    case 220: /* EFFECTIVE_BER: mantissa 15, exponent 255 */
    case 222: /* SYMBOL_BER */
        return 15 << 8 | 255;
    case 173: case 174: case 175: case 176: case 177: case 178: case 179: case 180: case 181:
    case 182: case 183: /* PCIE_COUNT_* */
    case 206: case 207: case 208: case 209: case 210: case 211: case 213: case 214: case 215:
    case 219: case 221: /* NVLINK_COUNT_* */
    case 230: /* GET_GPU_RECOVERY_ACTION */
    case 269: case 270: case 271: /* CLOCKS_EVENT_REASON_*, ns */
        return 0;
    }
    return -1;
}

int nvmlDeviceGetFieldValues(void *device, int count, struct field *fields)
{
    struct answer whole = look(__func__, index_of(device), NULL);
    if (whole.rc)
        return whole.rc;
    for (int i = 0; i < count; i++) {
        char key[32];
        snprintf(key, sizeof key, "%u.%u", fields[i].id, fields[i].scope);
        struct answer a = look(__func__, index_of(device), key);
        if (!a.found) {
            snprintf(key, sizeof key, "%u", fields[i].id);
            a = look(__func__, index_of(device), key);
        }
        double value = NUMBER(0, healthy_field(fields[i].id));
        int negative = value < 0 && a.found;
        fields[i].rc = a.rc ? a.rc : value < 0 && !negative ? NOT_SUPPORTED : 0;
        fields[i].type = negative ? 5 : 3; /* signed int, unsigned long long */
        fields[i].value.ull = value < 0 ? 0 : (u64)value;
        if (negative)
            fields[i].value.si = (int)value;
    }
    return 0;
}

int nvmlDeviceGetEccMode(void *device, u32 *current, u32 *pending)
{
    OF(NULL)
    *current = (u32)NUMBER(0, 1);
    *pending = (u32)NUMBER(1, 1);
    return 0;
}

int nvmlDeviceGetMemoryErrorCounter(void *device, u32 error, u32 counter, u32 place, u64 *value)
{
    char key[32];
    snprintf(key, sizeof key, "%u.%u.%u", error, counter, place);
    OF(key)
    *value = (u64)NUMBER(0, 0);
    return 0;
}

struct sram {
    u32 version;
    u64 counts[11];
    u32 exceeded;
};

int nvmlDeviceGetSramEccErrorStatus(void *device, struct sram *status)
{
    OF(NULL)
    if (status->version != 0x1000068)
        return VERSION_MISMATCH;
    for (int i = 0; i < 11; i++)
        status->counts[i] = (u64)NUMBER(i + 1, 0);
    status->exceeded = (u32)NUMBER(0, 0);
    return 0;
}

int nvmlDeviceGetRemappedRows(void *device, u32 *corrected, u32 *uncorrected, u32 *pending,
                              u32 *failed)
{
    OF(NULL)
    *corrected = (u32)NUMBER(0, 0);
    *uncorrected = (u32)NUMBER(1, 0);
    *pending = (u32)NUMBER(2, 0);
    *failed = (u32)NUMBER(3, 0);
    return 0;
}

int nvmlDeviceGetRowRemapperHistogram(void *device, u32 *banks)
{
    OF(NULL)
    for (int i = 0; i < 5; i++)
        banks[i] = (u32)NUMBER(i, i == 0 ? 2048 : 0); /* max, high, partial, low, none */
    return 0;
}

int nvmlDeviceGetRepairStatus(void *device, u32 *status)
{
    OF(NULL)
    if (status[0] != 0x100000C)
        return VERSION_MISMATCH;
    status[1] = (u32)NUMBER(0, 0);
    status[2] = (u32)NUMBER(1, 0);
    return 0;
}

/* A B200 has row remapping instead; `value N` makes N pages. */
int nvmlDeviceGetRetiredPages(void *device, u32 cause, u32 *count, u64 *pages)
{
    char key[16];
    snprintf(key, sizeof key, "%u", cause);
    OF(key)
    if (!a.found)
        return NOT_SUPPORTED;
    u32 have = (u32)NUMBER(0, 0), room = *count;
    *count = have;
    if (room < have || !pages)
        return have ? INSUFFICIENT_SIZE : 0;
    for (u32 i = 0; i < have; i++)
        pages[i] = i * 4096;
    return 0;
}

int nvmlDeviceGetRetiredPagesPendingStatus(void *device, u32 *pending)
{
    OF(NULL)
    if (!a.found)
        return NOT_SUPPORTED;
    *pending = (u32)NUMBER(0, 0);
    return 0;
}

int nvmlDeviceGetCurrentClocksEventReasons(void *device, u64 *reasons)
{
    OF(NULL)
    *reasons = (u64)NUMBER(0, 1); /* idle */
    return 0;
}

int nvmlDeviceGetMaxClockInfo(void *device, u32 type, u32 *mhz)
{
    char key[16];
    snprintf(key, sizeof key, "%u", type);
    OF(key)
    *mhz = (u32)NUMBER(0, type == 2 ? 3996 : 1965);
    return 0;
}

int nvmlDeviceGetClockInfo(void *device, u32 type, u32 *mhz)
{
    char key[16];
    snprintf(key, sizeof key, "%u", type);
    OF(key)
    *mhz = (u32)NUMBER(0, type == 2 ? 3996 : 120);
    return 0;
}

int nvmlDeviceGetClock(void *device, u32 type, u32 id, u32 *mhz)
{
    char key[16];
    snprintf(key, sizeof key, "%u.%u", type, id);
    OF(key)
    *mhz = (u32)NUMBER(0, type == 2 ? 3996 : 1965);
    return 0;
}

int nvmlDeviceGetMarginTemperature(void *device, int *margin)
{
    OF(NULL)
    if (margin[0] != 0x1000008)
        return VERSION_MISMATCH;
    margin[1] = (int)NUMBER(0, 52);
    return 0;
}

int nvmlDeviceGetTemperatureV(void *device, int *temperature)
{
    OF(NULL)
    temperature[2] = (int)NUMBER(0, 35);
    return 0;
}

/* Of older drivers, which have neither of the two above. */
int nvmlDeviceGetTemperature(void *device, u32 sensor, u32 *temperature)
{
    (void)sensor;
    OF(NULL)
    *temperature = (u32)NUMBER(0, 35);
    return 0;
}

int nvmlDeviceGetTemperatureThreshold(void *device, u32 which, u32 *temperature)
{
    (void)which;
    OF(NULL)
    *temperature = (u32)NUMBER(0, 87);
    return 0;
}

int nvmlDeviceGetEnforcedPowerLimit(void *device, u32 *milliwatts)
{
    OF(NULL)
    *milliwatts = (u32)NUMBER(0, 1000000);
    return 0;
}

int nvmlDeviceGetPowerManagementDefaultLimit(void *device, u32 *milliwatts)
{
    OF(NULL)
    *milliwatts = (u32)NUMBER(0, 1000000);
    return 0;
}

int nvmlDeviceGetPowerUsage(void *device, u32 *milliwatts)
{
    OF(NULL)
    *milliwatts = (u32)NUMBER(0, 140000);
    return 0;
}

#define ONE(name, otherwise)                                                                       \
    int name(void *device, u32 *value)                                                             \
    {                                                                                              \
        OF(NULL)                                                                                   \
        *value = (u32)NUMBER(0, otherwise);                                                        \
        return 0;                                                                                  \
    }

ONE(nvmlDeviceGetCurrPcieLinkWidth, 16)
ONE(nvmlDeviceGetMaxPcieLinkWidth, 16)
ONE(nvmlDeviceGetCurrPcieLinkGeneration, 5)
ONE(nvmlDeviceGetMaxPcieLinkGeneration, 5)
ONE(nvmlDeviceGetPcieReplayCounter, 0)
ONE(nvmlDeviceGetPersistenceMode, 1)

struct process {
    u32 pid;
    u64 memory;
    u32 gpu_instance, compute_instance;
};

/* `value PID BYTES PID BYTES …` */
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, u32 *count, struct process *into)
{
    OF(NULL)
    u32 have = (u32)(a.n / 2), room = *count;
    *count = have;
    if (room < have)
        return INSUFFICIENT_SIZE;
    for (u32 i = 0; i < have; i++) {
        into[i].pid = (u32)a.v[2 * i];
        into[i].memory = (u64)a.v[2 * i + 1];
        into[i].gpu_instance = into[i].compute_instance = 0xffffffff;
    }
    return 0;
}

struct memory2 {
    u32 version;
    u64 total, reserved, free, used;
};

int nvmlDeviceGetMemoryInfo_v2(void *device, struct memory2 *memory)
{
    OF(NULL)
    memory->total = 192265846784ull;
    memory->reserved = 700000000ull;
    memory->used = (u64)NUMBER(0, 4194304);
    memory->free = memory->total - memory->reserved - memory->used;
    return 0;
}

int nvmlDeviceGetMigMode(void *device, u32 *current, u32 *pending)
{
    OF(NULL)
    *current = (u32)NUMBER(0, 0);
    *pending = (u32)NUMBER(1, 0);
    return 0;
}

int nvmlDeviceValidateInforom(void *device)
{
    OF(NULL)
    return 0;
}

struct fabric {
    u32 version;
    unsigned char cluster[16];
    int status;
    u32 clique;
    unsigned char state;
    u32 mask;
    unsigned char summary;
};

/* `value STATE STATUS MASK SUMMARY` */
int nvmlDeviceGetGpuFabricInfoV(void *device, struct fabric *info)
{
    char key[16];
    snprintf(key, sizeof key, "%u", info->version >> 24);
    OF(key)
    if (info->version != 0x3000028 && info->version != 0x2000024)
        return VERSION_MISMATCH;
    memset(info->cluster, 0, sizeof info->cluster);
    info->state = (unsigned char)NUMBER(0, 3);
    info->status = (int)NUMBER(1, 0);
    info->clique = 1;
    /* no degraded bandwidth, no route recovery or unhealthy route, no timeout recovery,
     * configuration in order */
    info->mask = (u32)NUMBER(2, 2 | 2 << 2 | 2 << 4 | 2 << 6 | 1 << 8);
    if (info->version == 0x3000028)
        info->summary = (unsigned char)NUMBER(3, 1);
    return 0;
}

/* 18 links; `value 0` makes one inactive, `rc 2` takes it away. */
int nvmlDeviceGetNvLinkState(void *device, u32 link, u32 *active)
{
    char key[16];
    snprintf(key, sizeof key, "%u", link);
    OF(key)
    if (link >= 18)
        return INVALID_ARGUMENT;
    *active = (u32)NUMBER(0, 1);
    return 0;
}

int nvmlDeviceGetP2PStatus(void *device, void *other, u32 what, u32 *status)
{
    char key[16];
    (void)what;
    snprintf(key, sizeof key, "%d", index_of(other));
    OF(key)
    *status = (u32)NUMBER(0, 0);
    return 0;
}
