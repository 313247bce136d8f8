//! `peak PROGRAM ARGUMENT…` runs a program and prints the largest resident memory, in KiB, of it and of what it waited for.
//!
//! A process inherits the peak of the one that started it (getrusage(2)), so a starter of a few pages is what makes the
//! number that of the program. PROGRAM is a path.

#![no_main]
#![allow(unsafe_code)] // a program of system calls

use tare_floor::{self as sys, Failed, call};

tare_floor::entry!(main);

extern "C" fn main(stack: *const usize) -> ! {
    match run(stack) {
        Ok(status) => sys::exit(status),
        Err(Failed(step)) => sys::exit(100 + step),
    }
}

fn run(stack: *const usize) -> Result<i32, Failed> {
    // SAFETY: the kernel puts argc first.
    let count = unsafe { *stack };
    let argv = stack.wrapping_add(2); // argv after it, then a null word and the environment
    if count < 2 {
        return Err(Failed(0));
    }
    let environment = stack.wrapping_add(count + 2);
    let child = call(1, sys::FORK, [0; 5])?;
    if child == 0 {
        // SAFETY: argv[1] is there, as argc said.
        call(2, sys::EXECVE, [unsafe { *argv }, argv as usize, environment as usize, 0, 0])?;
    }
    let (mut status, mut usage) = (0i32, [0usize; 18]); // struct rusage: two times of two words, then ru_maxrss
    call(3, sys::WAIT4, [child, &raw mut status as usize, 0, usage.as_mut_ptr() as usize, 0])?;
    print(usage[4])?;
    Ok(if status & 0x7f == 0 { status >> 8 & 0xff } else { 128 + (status & 0x7f) })
}

/// Writes a number and a new line to standard output.
fn print(mut number: usize) -> Result<(), Failed> {
    let mut text = [b'\n'; 21];
    let mut start = text.len() - 1;
    loop {
        start -= 1;
        text[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    call(4, sys::WRITE, [1, text[start..].as_ptr() as usize, text.len() - start, 0, 0])?;
    Ok(())
}
