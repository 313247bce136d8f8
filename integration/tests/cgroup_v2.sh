# Runs in the guest, in a folder with `tare` and a bundle. What it prints is compared with what cgroup_v2.rs expects.
set -eu
tare="$PWD/tare --root /run/tare"
cgroup=/sys/fs/cgroup/tare-test/box
cd bundle

say() { # WHAT COMMAND...: one line, whatever the command says
    local what=$1 said
    shift
    said=$("$@" 2>&1) || said="$said (status $?)"
    echo "$what:" $said # unquoted: lines become words
}
inside() { $tare exec box /bin/sh -c "$1"; }

# The container keeps these descriptors: one of them must not be a pipe that somebody waits for the end of.
$tare run -d box </dev/null >/dev/null 2>&1
for file in memory.max memory.swap.max memory.high cpu.max cpu.weight cpuset.cpus pids.max; do
    say $file cat $cgroup/$file
done
say 'one process' sh -c "$tare ps --format json box | tr -cd , | wc -c"
say 'in its namespace' inside 'cat /proc/self/cgroup'
say 'null can be opened' inside ': < /dev/null && echo yes'
say 'the disk cannot' inside '(: < /dev/disk) 2>/dev/null || echo no'
say 'nor a node that it makes' inside 'mknod /tmp/disk b 254 0 && (: < /tmp/disk) 2>/dev/null || echo no'

$tare pause box
say paused sh -c "$tare state box | grep -o '\"status\": \"[a-z]*\"'; cat $cgroup/cgroup.freeze"
say 'exec while paused' sh -c "$tare exec box /bin/true 2>&1 | grep -o 'msg=.*'"
$tare resume box
say resumed sh -c "$tare state box | grep -o '\"status\": \"[a-z]*\"'; cat $cgroup/cgroup.freeze"

# What systemd or another runtime does in a container: processes move down, so that controllers can be handed down.
say 'moves its processes down' inside '
    mkdir /sys/fs/cgroup/inner && cd /sys/fs/cgroup && echo 1 > inner/cgroup.procs && echo 0 > inner/cgroup.procs &&
    echo +pids > cgroup.subtree_control && cat cgroup.subtree_control'
say 'exec follows' inside 'cat /proc/self/cgroup'

echo '{"memory": {"limit": 33554432, "swap": 33554432}, "cpu": {"shares": 1024}, "pids": {"limit": 77}}' |
    $tare update --resources - box
for file in memory.max memory.swap.max cpu.weight pids.max cpu.max; do
    say "updated $file" cat $cgroup/$file
done
$tare update --cpu-quota 40000 box
say 'a quota keeps its period' cat $cgroup/cpu.max
$tare update --cpu-period 50000 box
say 'a period keeps its quota' cat $cgroup/cpu.max
$tare update --memory-swap 50331648 box
say 'swap beside the limit there is' cat $cgroup/memory.swap.max
say 'statistics' sh -c "$tare events --stats box | grep -o '\"limit\":33554432\|\"pids\":{[^}]*}'"
$tare update --memory-swap 33554432 box
$tare events --interval 100ms box >../events &
events=$!
until grep -q stats ../events; do :; done # it watches from here on
say 'too much memory' inside 'head -c 90000000 /dev/zero | tail -c 80000000 > /dev/null'
say 'the kernel counted it' sh -c "grep -c 'oom_kill [1-9]' $cgroup/memory.events"

until grep -q oom ../events; do :; done
say 'and it was told' grep -m 1 oom ../events

$tare kill box KILL
wait $events
until $tare state box | grep -q stopped; do :; done
say delete $tare delete box
say 'left over' sh -c "ls /run/tare; find /sys/fs/cgroup/tare-test -mindepth 1 -type d"

sed -i 's/"uid":0/"uid":1000/' config.json
$tare run -d box </dev/null >/dev/null 2>&1
say 'a user may have cgroups below' inside 'mkdir /sys/fs/cgroup/below && echo yes'
say 'but not lift a limit' inside 'echo max > /sys/fs/cgroup/memory.max' 
$tare delete --force box

sed -i 's/"shares"/"realtimeRuntime"/' config.json
say refused sh -c "$tare run box 2>&1 | grep -o 'msg=.*'"
say 'nothing made' sh -c "ls /run/tare; find /sys/fs/cgroup/tare-test -mindepth 1 -type d"
