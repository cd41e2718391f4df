//! What the proxies' paths cost in instructions: counted, so that a few percent show on any machine at any hour.
//!
//! # Theory of operation
//! Each path ([`paths`]) runs under valgrind's callgrind twice, the second time for as many operations more as are counted
//! ([`callgrind`]). What the second run executed beyond the first, divided by those operations, is what one of them costs: the
//! start, the set-up and the first operations, which fill caches, are in both. The numbers are kept with the code ([`book`]) and
//! compared: a path that became dearer fails, and whoever means it keeps the new number, for the next reader of the history to see.
//!
//! # What the numbers are not
//! Time. They know nothing of caches, of the kernel and of waiting, and the processor's AES and wide registers count as one
//! instruction each. They depend on the compiler and on what the processor offers, so both stand in the book.

mod book;
mod callgrind;
mod paths;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use book::{Book, Place};
use clap::{Parser, Subcommand};
use paths::PATHS;

/// Counts what the proxies' paths cost in instructions, and compares with what is kept.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Child>,
    /// The numbers that are kept with the code.
    #[arg(long, default_value = "bench/counts.json")]
    book: PathBuf,
    /// The folder for callgrind's own files, which `callgrind_annotate` reads.
    #[arg(long, default_value = "target/counts")]
    out: PathBuf,
    /// Put the new numbers into the book.
    #[arg(long)]
    keep: bool,
    /// Only paths with this in their name.
    #[arg(long, default_value = "")]
    only: String,
}

#[derive(Subcommand)]
enum Child {
    /// Take a path so many times: what callgrind looks at.
    #[command(hide = true)]
    Take {
        /// Its name.
        path: String,
        /// How often.
        times: usize,
    },
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(Child::Take { path, times }) = arguments.command {
        let found = PATHS.iter().find(|known| known.name == path);
        return (found.context("no such path")?.take)(times);
    }
    let mut kept = Book::read(&arguments.book)?;
    let place = Place::here()?;
    if let Some(difference) = place.differs(&kept.place) {
        say(&format!(
            "Counted elsewhere than what is kept, so differences may be that: {difference}"
        ));
    }
    fs::create_dir_all(&arguments.out).context("the folder for callgrind's files")?;
    let chosen = PATHS
        .iter()
        .filter(|path| path.name.contains(&arguments.only));
    let mut counted = BTreeMap::new();
    for path in chosen {
        let instructions = callgrind::count(path, &arguments.out)?;
        let row = book::row(path.name, kept.instructions.get(path.name), instructions);
        say(&row);
        counted.insert(path.name.to_owned(), instructions);
    }
    let dearer = kept.dearer(&counted);
    if arguments.keep {
        kept.take(place, counted, |name| {
            PATHS.iter().any(|path| path.name == name)
        });
        return kept.write(&arguments.book);
    }
    if !dearer.is_empty() {
        bail!(
            "dearer than what is kept: {}. If that is meant, keep it with --keep and say why in the commit",
            dearer.join(", ")
        );
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the table is this program's output")]
fn say(text: &str) {
    println!("{text}");
}
