//! Commands that take many names do what they can, and tell of each that failed.

use std::fmt::Display;

use anyhow::Result;

/// Does `work` for each name, one after the other; gives the exit code.
pub async fn name<'n, F>(names: &'n [String], work: impl Fn(&'n str) -> F) -> i32
where
    F: Future<Output = Result<()>>,
{
    let mut code = 0;
    for name in names {
        if let Err(error) = work(name).await {
            code = report(&format!("{error:#}"));
        }
    }
    code
}

/// Prints an error where it does not end the command; gives the exit code that follows from it.
pub fn report(error: &impl Display) -> i32 {
    eprintln!("tarectl: {error:#}");
    1
}
