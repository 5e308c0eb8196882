# Sums folded stacks (inferno-collapse-perf --pid --kernel) into an account.
#   awk -v sender=PID -v receiver=PID -v hz=SAMPLES_PER_SECOND_OF_ALL_CORES -v secs=SECONDS -v cores=N -f account.awk all.folded
# A sample counts once, under the first of these that holds: what its innermost frame is (AEAD, a copy), what it is
# inside of (waking somebody, going to sleep), which system call or softirq it is in, which of our modules it is in.

function kind(stack, leaf, kernel) {
    kernel = leaf ~ /_\[k\]$/
    if (leaf ~ /chacha20|poly1305|aes_gcm|gcm_|GFp_|ring_core/ || (!kernel && stack ~ /;ring::aead/)) return "AEAD"
    if (kernel) {
        if (leaf ~ /^(rep_movs|copy_user|_copy_|__copy|copyin|copyout|copy_to_iter|copy_from_iter|memcpy|__memcpy|memmove|__memmove|skb_copy_bits|csum_partial|csum_and|clear_page|skb_copy_and_csum)/) return "copies in the kernel"
        if (stack ~ /;(__schedule|schedule|schedule_[a-z_]*|preempt_schedule[a-z_]*|finish_task_switch[a-z_.0-9]*|pick_next_task[a-z_]*)_\[k\]/) return "scheduling, going to sleep"
        if (stack ~ /;(try_to_wake_up|__wake_up[a-z_]*|ep_poll_callback|sock_def_readable|default_wake_function|ttwu_[a-z_]*|wake_up_[a-z_]*|autoremove_wake_function)_\[k\]/) return "waking threads"
        if (stack ~ /;(net_rx_action|__do_softirq|handle_softirqs|do_softirq)[a-z_.0-9]*_\[k\]/) {
            if (stack ~ /;(tun_|tcp_v4_rcv|tcp_rcv)[a-z_0-9.]*_\[k\]/) return "softirq: TCP"
            if (stack ~ /;(udp_|__udp)[a-z_0-9.]*_\[k\]/) return "softirq: UDP"
            return "softirq: other"
        }
        if (leaf ~ /^(entry_SYSCALL|do_syscall_64|syscall_|x64_sys_call|__x64_sys)/) return "entering and leaving system calls"
        if (stack ~ /;(__sys_sendm|__x64_sys_sendm|udp_sendmsg|___sys_sendmsg)/) return "UDP send"
        if (stack ~ /;(__sys_recvm|__x64_sys_recvm|do_recvmmsg|udp_recvmsg)/) return "UDP receive"
        if (stack ~ /;(tun_get_user|tun_chr_write_iter)/) return "TUN write (IP and TCP of the inner packet)"
        if (stack ~ /;(tun_do_read|tun_chr_read_iter|tun_put_user)/) return "TUN read"
        if (stack ~ /;(do_epoll_wait|ep_poll|__x64_sys_epoll)/) return "epoll"
        return "other kernel"
    }
    if (stack ~ /;mesh_proto::segment/) return "split and coalesce"
    if (stack ~ /;mesh_proto::packet::complete|;mesh_proto::packet::checksum/) return "split and coalesce"
    if (leaf ~ /mem(cpy|move|set)/) return "copies in user space"
    if (stack ~ /;mesh_proto::/) return "engine"
    if (stack ~ /;boringtun|;meshd::(sessions|tunnels)/) return "boringtun and sessions, AEAD apart"
    if (stack ~ /;meshd::/) return "lane and worker"
    if (stack ~ /;vdso|__vdso|clock_gettime/) return "reading the clock"
    return "other user"
}

{
    count = $NF
    sub(/ [0-9]+$/, "")
    total += count
    first = $0
    sub(/;.*/, "", first)
    pid = first
    sub(/.*-/, "", pid)
    side = ""
    if (pid == sender) side = "sender"
    else if (pid == receiver) side = "receiver"
    if (side == "") {
        who = first
        if (pid == "0") who = "idle"
        else if (who ~ /^iperf3/) who = "iperf3 " (stack_has_send($0) ? "sending" : "receiving")
        else if (who ~ /^ksoftirqd/) who = "ksoftirqd"
        else who = "others"
        machine[who] += count
    } else {
        machine["meshd, " side] += count
        leaf = $0
        sub(/.*;/, "", leaf)
        of[side] += count
        part[side, kind($0, leaf)] += count
        kinds[kind($0, leaf)] = 1
        leaves[side, leaf] += count
    }
}

function stack_has_send(stack) { return stack ~ /tcp_sendmsg|ksys_write|__x64_sys_write|__sys_sendto/ }


END {
    print "the machine"
    n = 0
    for (who in machine) { order[++n] = who }
    sort_by(order, n, machine, "")
    for (i = 1; i <= n; i++) printf "  %-46s %6.1f %%\n", order[i], 100 * machine[order[i]] / total
    split("sender receiver", sides, " ")
    for (s = 1; s <= 2; s++) {
        side = sides[s]
        printf "\nmeshd, %s: %.1f %% of the machine, of which\n", side, 100 * of[side] / total
        n = 0
        delete order
        for (k in kinds) if ((side, k) in part) order[++n] = k
        sort_by(order, n, part, side SUBSEP)
        for (i = 1; i <= n; i++) printf "  %-46s %6.1f %%\n", order[i], 100 * part[side, order[i]] / of[side]
        print "  innermost functions:"
        n = 0
        delete order
        for (key in leaves) { split(key, p, SUBSEP); if (p[1] == side) order[++n] = p[2] }
        sort_by(order, n, leaves, side SUBSEP)
        for (i = 1; i <= n && i <= 14; i++) printf "    %-58s %6.1f %%\n", order[i], 100 * leaves[side, order[i]] / of[side]
    }
}

function sort_by(order, n, values, prefix,    i, j, t) {
    for (i = 2; i <= n; i++) {
        t = order[i]
        for (j = i - 1; j >= 1 && values[prefix order[j]] < values[prefix t]; j--) order[j + 1] = order[j]
        order[j + 1] = t
    }
}
