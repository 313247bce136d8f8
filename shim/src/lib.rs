//! Supervision of the processes of one pod.
