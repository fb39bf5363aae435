"""The special registers: %tid.x and its like, as expressions over the running thread.

Those that name hardware which is not there (%pm0, %envreg3, ...) are not in the table and so are refused by
name."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Special:
    type: str
    expression: str


def _dimension(name: str, expression: str) -> dict[str, Special]:
    found = {f"{name}.{axis}": Special("u32", f"{expression}{axis}") for axis in "xyz"}
    return found | {f"{name}.w": Special("u32", "0u")}


SPECIAL: dict[str, Special] = {
    **_dimension("%tid", "t."),
    **_dimension("%ntid", "t.launch->block."),
    **_dimension("%ctaid", "t.block->index."),
    **_dimension("%nctaid", "t.launch->grid."),
    **_dimension("%clusterid", "t.block->cluster_index."),
    **_dimension("%nclusterid", "cluster_count(t)."),
    **_dimension("%cluster_ctaid", "t.block->cluster_block."),
    **_dimension("%cluster_nctaid", "t.launch->cluster."),
    "%cluster_ctarank": Special("u32", "t.block->rank"),
    "%cluster_nctarank": Special("u32", "t.launch->cluster.x * t.launch->cluster.y * t.launch->cluster.z"),
    "%is_explicit_cluster": Special("pred", "t.launch->explicit_cluster"),
    "%laneid": Special("u32", "t.lane"),
    "%warpid": Special("u32", "t.linear / WARP"),
    "%nwarpid": Special("u32", "hardware_warps()"),
    "%smid": Special("u32", "(uint32_t)(t.block->linear % hardware_multiprocessors())"),
    "%nsmid": Special("u32", "hardware_multiprocessors()"),
    "%gridid": Special("u64", "t.launch->serial"),
    "%lanemask_eq": Special("u32", "1u << t.lane"),
    "%lanemask_lt": Special("u32", "(1u << t.lane) - 1u"),
    "%lanemask_le": Special("u32", "(2u << t.lane) - 1u"),
    "%lanemask_gt": Special("u32", "~((2u << t.lane) - 1u)"),
    "%lanemask_ge": Special("u32", "~((1u << t.lane) - 1u)"),
    "%clock": Special("u32", "(uint32_t)device_clock(t)"),
    "%clock_hi": Special("u32", "(uint32_t)(device_clock(t) >> 32)"),
    "%clock64": Special("u64", "device_clock(t)"),
    "%globaltimer": Special("u64", "global_timer(t)"),
    "%globaltimer_lo": Special("u32", "(uint32_t)global_timer(t)"),
    "%globaltimer_hi": Special("u32", "(uint32_t)(global_timer(t) >> 32)"),
    "%dynamic_smem_size": Special("u32", "t.launch->dynamic_shared"),
    "%total_smem_size": Special("u32", "t.launch->static_shared + t.launch->dynamic_shared"),
    "%aggr_smem_size": Special("u32", "t.launch->static_shared + t.launch->dynamic_shared"),
    # The grid barrier of cooperative launches keeps its state where these two point.
    "%envreg1": Special("b32", "(uint32_t)(t.launch->grid_workspace >> 32)"),
    "%envreg2": Special("b32", "(uint32_t)t.launch->grid_workspace"),
}
