//! The numbers that are kept with the code.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path as File;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// A path may become this much dearer unnoticed, in percent. Two runs of one build differ by up to 3.4, on paths whose handshakes draw
/// other keys each time; the others not at all.
const TOLERATED: u64 = 5;
/// And by so many instructions, since five percent of a short path is an inlining decision elsewhere in the file.
const LEAST: u64 = 40;

/// What the numbers depend on besides the code.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Place {
    /// The compiler, as it names itself.
    rustc: String,
    valgrind: String,
    /// Architecture, and what of the processor's offers the cryptography and the copying ask for.
    processor: String,
}

impl Place {
    /// This machine and its tools.
    ///
    /// # Errors
    ///
    /// One of the tools is missing.
    pub(crate) fn here() -> Result<Self> {
        Ok(Self {
            rustc: version("rustc")?,
            valgrind: version("valgrind")?,
            processor: processor(),
        })
    }

    /// What differs from `other`, in words; nothing does from a book that says nothing.
    pub(crate) fn differs(&self, other: &Self) -> Option<String> {
        let pairs = [
            (&self.rustc, &other.rustc),
            (&self.valgrind, &other.valgrind),
            (&self.processor, &other.processor),
        ];
        let different = pairs
            .into_iter()
            .filter(|(here, there)| !there.is_empty() && here != there);
        let words: Vec<_> = different
            .map(|(here, there)| format!("{here}, kept with {there}"))
            .collect();
        (!words.is_empty()).then(|| words.join("; "))
    }
}

fn version(program: &str) -> Result<String> {
    let output = Command::new(program).arg("--version").output();
    let output = output.with_context(|| format!("{program} --version"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(target_arch = "x86_64")]
fn processor() -> String {
    let offers = [
        ("aes", is_x86_feature_detected!("aes")),
        ("avx2", is_x86_feature_detected!("avx2")),
        ("bmi2", is_x86_feature_detected!("bmi2")),
        ("pclmulqdq", is_x86_feature_detected!("pclmulqdq")),
    ];
    let there = offers.into_iter().filter(|(_, there)| *there);
    there.fold("x86_64".to_owned(), |text, (name, _)| {
        format!("{text} {name}")
    })
}

#[cfg(not(target_arch = "x86_64"))]
fn processor() -> String {
    std::env::consts::ARCH.to_owned()
}

/// The kept numbers, and where they were counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Book {
    pub(crate) place: Place,
    /// Instructions of one operation, by path.
    pub(crate) instructions: BTreeMap<String, u64>,
}

impl Book {
    /// The book in `file`; an empty one if there is none yet.
    ///
    /// # Errors
    ///
    /// It cannot be read as one.
    pub(crate) fn read(file: &File) -> Result<Self> {
        if !file.exists() {
            return Ok(Self::default());
        }
        let text = fs::read_to_string(file).context("the kept numbers")?;
        Self::parse(&text).with_context(|| format!("{}", file.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(text)?;
        let text = |key: &str| {
            value[key]
                .as_str()
                .map(str::to_owned)
                .with_context(|| key.to_owned())
        };
        let numbers = value["instructions"].as_object().context("instructions")?;
        let numbers = numbers.iter().map(|(name, number)| {
            let number = number.as_u64().with_context(|| name.clone())?;
            Ok((name.clone(), number))
        });
        Ok(Self {
            place: Place {
                rustc: text("rustc")?,
                valgrind: text("valgrind")?,
                processor: text("processor")?,
            },
            instructions: numbers.collect::<Result<_>>()?,
        })
    }

    fn text(&self) -> String {
        let value = json!({
            "rustc": self.place.rustc,
            "valgrind": self.place.valgrind,
            "processor": self.place.processor,
            "instructions": self.instructions,
        });
        format!("{value:#}\n")
    }

    /// # Errors
    ///
    /// The file cannot be written.
    pub(crate) fn write(&self, file: &File) -> Result<()> {
        fs::write(file, self.text()).context("the kept numbers")
    }

    /// Names of the paths that became dearer.
    pub(crate) fn dearer(&self, counted: &BTreeMap<String, u64>) -> Vec<String> {
        let dearer = counted.iter().filter(|(name, now)| {
            let kept = self.instructions.get(*name);
            kept.is_some_and(|kept| is_dearer(*kept, **now))
        });
        dearer.map(|(name, _)| name.clone()).collect()
    }

    /// Takes new numbers in, and drops those of paths that `are` no more.
    pub(crate) fn take(
        &mut self,
        place: Place,
        counted: BTreeMap<String, u64>,
        are: impl Fn(&str) -> bool,
    ) {
        self.place = place;
        self.instructions.extend(counted);
        self.instructions.retain(|name, _| are(name));
    }
}

fn is_dearer(kept: u64, now: u64) -> bool {
    now > kept + LEAST && now * 100 > kept * (100 + TOLERATED)
}

/// A path's line of the table: its name, what is kept, what was counted, and the ratio.
pub(crate) fn row(name: &str, kept: Option<&u64>, now: u64) -> String {
    let Some(kept) = kept else {
        return format!("{name:<44} {:>12} {now:>12}    new", "-");
    };
    let mark = if is_dearer(*kept, now) {
        "  DEARER"
    } else {
        ""
    };
    let ratio = now as f64 / (*kept).max(1) as f64;
    format!("{name:<44} {kept:>12} {now:>12}  {ratio:5.3}{mark}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{Book, Place, is_dearer};

    fn place(rustc: &str) -> Place {
        Place {
            rustc: rustc.to_owned(),
            valgrind: "v".to_owned(),
            processor: "p".to_owned(),
        }
    }

    fn numbers(pairs: &[(&str, u64)]) -> BTreeMap<String, u64> {
        let owned = pairs
            .iter()
            .map(|(name, number)| ((*name).to_owned(), *number));
        owned.collect()
    }

    #[test]
    fn a_path_is_dearer_by_a_share_and_by_a_number_of_instructions() {
        let table = [
            (1000, 1050, false),
            (1000, 1051, true),
            (1000, 900, false),
            (100, 140, false),
            (100, 141, true),
            (0, 40, false),
            (0, 41, true),
        ];
        for (kept, now, expected) in table {
            assert_eq!(is_dearer(kept, now), expected, "{kept} {now}");
        }
    }

    #[test]
    fn new_paths_are_not_dearer_and_old_ones_are_forgotten_when_kept() {
        let mut book = Book {
            place: place("1"),
            instructions: numbers(&[("same", 1000), ("worse", 1000), ("gone", 5)]),
        };
        let counted = numbers(&[("same", 1001), ("worse", 1100), ("new", 7)]);
        assert_eq!(book.dearer(&counted), ["worse"]);
        book.take(place("2"), counted.clone(), |name| name != "gone");
        assert_eq!(book.instructions, counted);
        assert_eq!(book.place, place("2"));
        assert!(book.dearer(&counted).is_empty());
    }

    #[test]
    fn a_book_reads_as_it_was_written_and_says_when_it_is_of_another_place() {
        let book = Book {
            place: place("rustc 1"),
            instructions: numbers(&[("a path", 12)]),
        };
        assert_eq!(Book::parse(&book.text()).unwrap(), book);
        assert_eq!(place("rustc 1").differs(&book.place), None);
        assert_eq!(place("rustc 1").differs(&Place::default()), None);
        let differs = place("rustc 2").differs(&book.place).unwrap();
        assert_eq!(differs, "rustc 2, kept with rustc 1");
        assert!(Book::parse("{}").is_err());
    }
}
