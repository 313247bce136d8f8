//! What CI runs: each target for a moment, always with the same seed.

use std::process::Command;

#[test]
fn a_short_run_finds_nothing() {
    let output = Command::new(env!("CARGO_BIN_EXE_fuzz")).args(["all", "--seconds", "2"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let list = Command::new(env!("CARGO_BIN_EXE_fuzz")).arg("list").output().unwrap();
    for line in String::from_utf8(list.stdout).unwrap().lines() {
        let target = line.split(' ').next().unwrap();
        assert!(text.contains(&format!("{target}: ")), "{target} did not run: {text}");
    }
}

#[test]
fn an_unknown_target_is_an_error() {
    let output = Command::new(env!("CARGO_BIN_EXE_fuzz")).arg("no-such-target").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "fuzz: no target no-such-target: see fuzz list\n");
}
