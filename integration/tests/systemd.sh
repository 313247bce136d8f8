# Runs in the guest, in a folder with `tare` and a bundle; $1 is runc. What it prints is compared with what systemd.rs
# expects.
set -eu
runc=$1
unit=tare-box.scope
cgroup=/sys/fs/cgroup/taretest.slice/taretest-inner.slice/$unit
cd bundle

tare() { ../tare --root /run/tare --systemd-cgroup "$@"; }
say() { # WHAT COMMAND...: one line, whatever the command says
    local what=$1 said
    shift
    said=$("$@" 2>&1) || said="$said (status $?)"
    echo "$what:" $said # unquoted: lines become words
}
files() { (cd $cgroup && tail -n +1 memory.{max,low,high,swap.max,oom.group} cpu.{max,weight} cpuset.cpus pids.max); }
shown() {
    local names='ControlGroup Slice Delegate CPUWeight CPUQuotaPerSecUSec CPUQuotaPeriodUSec AllowedCPUs MemoryMax MemoryHigh
        MemoryLow MemorySwapMax TasksMax OOMPolicy CPUAccounting MemoryAccounting IOAccounting TasksAccounting
        DefaultDependencies TimeoutStopUSec DevicePolicy DeviceAllow'
    systemctl show $(printf ' -p %s' $names) $unit
}
gone() { ! systemctl is-active -q $unit && [ ! -e $cgroup ]; }

tare run -d box </dev/null >/dev/null 2>&1
for file in memory.max memory.low memory.high memory.swap.max cpu.max cpu.weight cpuset.cpus pids.max; do
    say $file cat $cgroup/$file
done
say 'processes' sh -c "wc -l <$cgroup/cgroup.procs"
say 'systemd knows' shown
say 'after a reload' sh -c "systemctl daemon-reload; cat $cgroup/memory.max $cgroup/cpu.max $cgroup/pids.max"
tare update --memory 33554432 --memory-swap 33554432 --pids-limit 77 --cpu-share 1024 box
say 'updated' sh -c "cat $cgroup/memory.max $cgroup/memory.swap.max $cgroup/pids.max $cgroup/cpu.weight"
say 'systemd knows the new' systemctl show -p MemoryMax -p TasksMax -p CPUWeight -p NeedDaemonReload $unit
say 'in its namespace' tare exec box /bin/cat /proc/self/cgroup
tare pause box
say paused sh -c "cat $cgroup/cgroup.freeze; ../tare --root /run/tare state box | grep -o '\"status\": \"[a-z]*\"'"
tare resume box
tare kill box KILL
until tare state box | grep -q stopped; do :; done
tare delete box
say 'gone with its container' gone
say 'left over' ls /run/tare

tare create box </dev/null >/dev/null 2>&1
say 'created' systemctl is-active $unit
tare start box
systemctl stop $unit
until tare state box | grep -q stopped; do :; done
say 'stopped by systemd' tare delete box

config() { sed "$@" ../config.json >config.json; }
mv config.json ..
no_program() { refused | grep -o 'exec: .*'; }
refused() { ../tare --root /run/tare --systemd-cgroup run box 2>&1 | grep -o 'msg=.*'; }
config 's/"swap":134217728/"swap":1/'
say refused refused
config 's/"args":\["[^]]*\]/"args":["\/nope"]/'
say 'no program' no_program
say 'undone' gone
config 's/taretest-inner.slice:tare:box/nonsense/'
say 'not a path' refused
config 's/{"type":"cgroup"}/{"type":"uts"}/; s/"limit":1}/"limit":50}/'
tare run -d box </dev/null >/dev/null 2>&1
say 'its cgroup without a namespace' tare exec box /bin/cat /sys/fs/cgroup/memory.max
tare delete --force box
say 'gone by force' gone

# The same container by both; runc rounds the quota in the file too.
config 's/"limit":1}/"limit":50}/; s/"quota":33333/"quota":50000/'
alike() { grep -vE '^(Description|OOMPolicy|DeviceAllow)='; }
tare run -d box </dev/null >/dev/null 2>&1
shown | alike >/tmp/tare.shown
files >/tmp/tare.files
tare delete --force box
$runc --systemd-cgroup run -d box </dev/null >/dev/null 2>&1
shown | alike >/tmp/runc.shown
files >/tmp/runc.files
$runc delete --force box
say "unlike runc's unit" diff /tmp/tare.shown /tmp/runc.shown
say "unlike runc's files" diff /tmp/tare.files /tmp/runc.files
