# What a container is confined by when its pod leaves that to the runtime. It does as it likes with its own files, network
# and capabilities; not with what reaches the kernel itself through /proc and /sys, nor with mounts, nor with processes
# outside. apparmor.d(5)
profile cri-containerd.apparmor.d flags=(attach_disconnected,mediate_deleted) {
  network,
  capability,
  file,
  unix,
  dbus,
  umount,

  # Whoever manages containers may signal and trace into them; among themselves containers may, too.
  signal (receive) peer=unconfined,
  signal (receive) peer=runc,
  signal (receive) peer=crun,
  signal (send, receive) peer=cri-containerd.apparmor.d,
  ptrace (readby, tracedby) peer=unconfined,
  ptrace (trace, read, tracedby, readby) peer=cri-containerd.apparmor.d,

  deny mount,

  # Of /proc only folders of processes, and of /proc/sys only the limits of shared memory, are written.
  deny /proc/* w,
  deny /proc/{acpi,bus,driver,fs,irq,scsi,tty}/** w,
  deny /proc/sys/[^k]** w,
  deny /proc/sys/kernel/[^s]** w,
  deny /proc/sys/kernel/s[^h]** w,
  deny /proc/sys/kernel/sh[^m]** w,
  deny /proc/sysrq-trigger rwklx,
  deny /proc/{kcore,kmem,mem} rwklx,

  # Of /sys only cgroups are written.
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
}
