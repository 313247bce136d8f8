# Runs in the guest as a user, in a folder with `tare` and a bundle, in a cgroup of their own. What it prints is compared
# with what rootless.rs expects.
set -eu
cd bundle

tare() { ../tare "${driver[@]}" "$@"; }
say() { # WHAT COMMAND...: one line, whatever the command says
    local what=$1 said
    shift
    said=$("$@" 2>&1) || said="$said (status $?)"
    echo "$what:" $said # unquoted: lines become words
}
life() { # CGROUP: of one container
    tare run -d box </dev/null >/dev/null 2>../said || true
    say 'it runs' cat ../said
    say 'its ids' tare exec box /bin/cat /proc/self/uid_map
    say 'its cgroup' tare exec box /bin/cat /proc/self/cgroup
    say 'its limits' sh -c "cat $1/memory.max $1/pids.max"
    say 'may have cgroups below' tare exec box /bin/sh -c 'mkdir /sys/fs/cgroup/below && rmdir /sys/fs/cgroup/below && echo yes'
    tare update --memory 33554432 box
    say 'updated' cat $1/memory.max
    tare pause box
    say 'paused' sh -c "cat $1/cgroup.freeze"
    tare resume box
    say 'statistics' sh -c "../tare events --stats box | grep -o '\"limit\":33554432'"
    tare delete --force box
    say 'left over' sh -c "ls $XDG_RUNTIME_DIR/tare; ls -d $1 2>/dev/null"
}

own=/sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup)
driver=()
life $(dirname $own)/box
driver=(--systemd-cgroup)
life /sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/user.slice/tare-box.scope
