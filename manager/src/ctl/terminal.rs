//! The terminal that we run in.

use anyhow::{Context as _, Result, ensure};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

/// docker's rule: a terminal inside with input needs one outside.
pub fn check(interactive: bool, tty: bool) -> Result<()> {
    ensure!(!(interactive && tty) || isatty(rustix::stdio::stdin()), "the input device is not a TTY");
    Ok(())
}

/// Our terminal in raw mode; as it was when this is dropped.
pub struct Raw(Option<Termios>);

impl Raw {
    /// # Errors
    /// Standard input is a terminal and cannot be set.
    pub fn begin() -> Result<Raw> {
        let stdin = rustix::stdio::stdin();
        if !isatty(stdin) {
            return Ok(Raw(None));
        }
        let before = tcgetattr(stdin).context("reading the terminal's settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin, OptionalActions::Now, &raw).context("making the terminal raw")?;
        Ok(Raw(Some(before)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, before); // nobody is left to tell
        }
    }
}

/// Columns and rows of our terminal, if there is one.
pub fn window() -> Option<(u32, u32)> {
    let size = tcgetwinsize(rustix::stdio::stdin()).ok()?;
    Some((u32::from(size.ws_col), u32::from(size.ws_row)))
}
