/* A libibverbs.so.1 of our own: what IBV_STUB in the environment says.
 *
 * "mlx5_0=5/5 mlx5_1=4/5": devices with their active and greatest MTU (enum ibv_mtu). An active MTU
 * of 0 makes ibv_query_port fail, of 9 makes ibv_open_device fail, of 7 makes ibv_query_port hang.
 */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct device {
	char name[64];
	int active, most;
};

struct port_attr { /* the head of struct ibv_port_attr */
	int state, max_mtu, active_mtu, gid_tbl_len;
	uint32_t port_cap_flags, max_msg_sz, bad_pkey_cntr, qkey_viol_cntr;
	uint16_t pkey_tbl_len, lid, sm_lid;
	uint8_t rest[10];
};

struct device **ibv_get_device_list(int *count)
{
	const char *text = getenv("IBV_STUB");
	struct device **list = calloc(65, sizeof *list);
	int n = 0, used;

	if (!text) {
		errno = ENOSYS;
		return NULL;
	}
	while (n < 64) {
		struct device *d = calloc(1, sizeof *d);
		if (sscanf(text, " %63[^= ]=%d/%d%n", d->name, &d->active, &d->most, &used) < 3) {
			free(d);
			break;
		}
		text += used;
		list[n++] = d;
	}
	if (count)
		*count = n;
	return list;
}

void ibv_free_device_list(struct device **list) { free(list); }

const char *ibv_get_device_name(struct device *d) { return d->name; }

void *ibv_open_device(struct device *d)
{
	if (d->active == 9) {
		errno = EACCES;
		return NULL;
	}
	return d;
}

int ibv_close_device(void *d) { return d ? 0 : -1; }

int ibv_query_port(void *handle, uint8_t port, struct port_attr *attr)
{
	struct device *d = handle;

	if (d->active == 7)
		for (;;)
			pause();
	if (d->active == 0)
		return EIO;
	memset(attr, 0, sizeof *attr);
	attr->state = 4;
	attr->max_mtu = d->most;
	attr->active_mtu = d->active;
	attr->pkey_tbl_len = 128;
	attr->lid = port;
	return 0;
}
