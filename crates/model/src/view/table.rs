//! Persistent tables of records that are found by what they themselves say.
//!
//! # Theory of operation
//!
//! A trie over the bits of the key's hash. A leaf is one allocation with up to [`LEAF`] entries, each a hash and a shared record, ordered
//! by hash and then by rank; above it are branches of eight. Keys are not stored: the record has them. So an entry takes some
//! twenty bytes, where a map of keys to records takes over a hundred, and a mesh of tens of thousands of workloads has four entries
//! for each. A change copies one leaf and the branches above it; all else is shared with the table before.
//!
//! # Invariants
//!
//! * Going through a table gives the same order for equal sets, whatever their history.
//! * A leaf holds more than [`LEAF`] entries only if their hashes are equal but for the last bit.

use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash};
use std::marker::PhantomData;
use std::net::IpAddr;
use std::slice;
use std::sync::Arc;

use smallvec::SmallVec;

use super::index::Candidate;
use crate::workload::Workload;

/// Entries of a leaf. Half of it on average are copied by a change, each a counter raised in memory that is cold; with less, more of the
/// table is branches.
const LEAF: usize = 16;

/// Bits of the hash that choose among the children of a branch.
const BITS: u32 = 3;

/// Children of a branch.
const WIDTH: usize = 1 << BITS;

/// Branches above the deepest leaf: as many as the hash has bits for.
const DEEPEST: u32 = u64::BITS / BITS;

/// How records are found.
pub(crate) trait Key {
    /// What is found.
    type Item: Candidate;
    /// What is looked for.
    type Probe<'a>: Copy + Eq + Hash;

    /// Is `item` one of those looked for.
    fn finds(item: &Self::Item, probe: Self::Probe<'_>) -> bool;
}

/// By uid.
#[derive(Debug)]
pub(crate) struct Uid;

impl Key for Uid {
    type Item = Workload;
    type Probe<'a> = &'a str;

    fn finds(item: &Workload, uid: &str) -> bool {
        item.uid == *uid
    }
}

/// By namespace and object name.
#[derive(Debug)]
pub(crate) struct Name;

impl Key for Name {
    type Item = Workload;
    type Probe<'a> = (&'a str, &'a str);

    fn finds(item: &Workload, (namespace, name): (&str, &str)) -> bool {
        item.name() == name && item.namespace == *namespace
    }
}

/// By network and address.
#[derive(Debug)]
pub(crate) struct Address;

impl Key for Address {
    type Item = Workload;
    type Probe<'a> = (&'a str, IpAddr);

    fn finds(item: &Workload, (network, address): (&str, IpAddr)) -> bool {
        item.owns(address) && item.network == *network
    }
}

/// A persistent table. Cloning shares everything.
pub(crate) struct Table<K: Key> {
    root: Node<K::Item>,
    by: PhantomData<K>,
}

impl<K: Key> Table<K> {
    /// Those looked for, best first.
    pub(crate) fn get<'t, 'p>(
        &'t self,
        probe: K::Probe<'p>,
    ) -> impl Iterator<Item = &'t Arc<K::Item>> + use<'t, 'p, K> {
        let hash = hash(probe);
        let mut node = &self.root;
        let mut depth = 0;
        let leaf = loop {
            match node {
                Node::Empty => break &[][..],
                Node::Leaf(entries) => break &**entries,
                Node::Branch(branch) => match branch.children.get(place(hash, depth)) {
                    Some(child) => node = child,
                    None => break &[][..],
                },
            }
            depth += 1;
        };
        leaf.iter()
            .filter(move |entry| entry.hash == hash && K::finds(&entry.item, probe))
            .map(|entry| &entry.item)
    }

    /// How many there are; one with several keys counts for each.
    pub(crate) fn size(&self) -> usize {
        self.root.size()
    }

    /// All of them.
    pub(crate) fn iter(&self) -> Iter<'_, K::Item> {
        Iter {
            above: vec![slice::from_ref(&self.root).iter()],
            leaf: [].iter(),
        }
    }

    /// Takes out `old` and puts in `new`, each with the key by which it was, or is to be found. What is found by the key of `new`
    /// and is another version of it is taken out, too.
    pub(crate) fn replace(
        &mut self,
        old: Option<(K::Probe<'_>, &K::Item)>,
        new: Option<(K::Probe<'_>, &Arc<K::Item>)>,
    ) {
        let old = old.map(|(probe, item)| (hash(probe), item));
        let new = new.map(|(probe, item)| Entry {
            hash: hash(probe),
            item: Arc::clone(item),
        });
        match (old, new) {
            (Some((hash, old)), Some(new)) if hash == new.hash => {
                self.root.change(0, hash, Some(old), Some(new));
            }
            (old, new) => {
                if let Some((hash, old)) = old {
                    self.root.change(0, hash, Some(old), None);
                }
                if let Some(new) = new {
                    self.root.change(0, new.hash, None, Some(new));
                }
            }
        }
    }
}

impl<K: Key> Default for Table<K> {
    fn default() -> Self {
        Self {
            root: Node::Empty,
            by: PhantomData,
        }
    }
}

impl<K: Key> Clone for Table<K> {
    fn clone(&self) -> Self {
        Self {
            root: self.root.clone(),
            by: PhantomData,
        }
    }
}

impl<K: Key<Item: PartialEq>> PartialEq for Table<K> {
    fn eq(&self, other: &Self) -> bool {
        self.size() == other.size() && self.iter().eq(other.iter())
    }
}

impl<K: Key<Item: fmt::Debug>> fmt::Debug for Table<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// The hash has fixed keys: what is in a table comes from the control plane, and equal views shall iterate alike.
fn hash(probe: impl Hash) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(probe)
}

/// Which child of a branch at `depth` leads to `hash`. The first bits come first, so that a table is gone through by hash.
fn place(hash: u64, depth: u32) -> usize {
    let bits = hash >> (u64::BITS - BITS * (depth + 1));
    usize::try_from(bits).unwrap_or_default() % WIDTH
}

struct Entry<T> {
    hash: u64,
    item: Arc<T>,
}

impl<T> Clone for Entry<T> {
    fn clone(&self) -> Self {
        Self {
            hash: self.hash,
            item: Arc::clone(&self.item),
        }
    }
}

/// Entries on their way from one leaf to the next.
type Entries<T> = SmallVec<[Entry<T>; LEAF + 1]>;

enum Node<T> {
    Empty,
    Leaf(Arc<[Entry<T>]>),
    Branch(Arc<Branch<T>>),
}

struct Branch<T> {
    /// Entries below.
    size: usize,
    children: [Node<T>; WIDTH],
}

impl<T> Clone for Node<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Empty => Self::Empty,
            Self::Leaf(entries) => Self::Leaf(Arc::clone(entries)),
            Self::Branch(branch) => Self::Branch(Arc::clone(branch)),
        }
    }
}

impl<T> Clone for Branch<T> {
    fn clone(&self) -> Self {
        Self {
            size: self.size,
            children: self.children.clone(),
        }
    }
}

impl<T> Node<T> {
    fn size(&self) -> usize {
        match self {
            Self::Empty => 0,
            Self::Leaf(entries) => entries.len(),
            Self::Branch(branch) => branch.size,
        }
    }

    /// Everything below, in order.
    fn gather(&self, into: &mut Entries<T>) {
        match self {
            Self::Empty => {}
            Self::Leaf(entries) => into.extend(entries.iter().cloned()),
            Self::Branch(branch) => branch.children.iter().for_each(|child| child.gather(into)),
        }
    }
}

impl<T: Candidate> Node<T> {
    /// A node at `depth` of these entries, which are in order.
    fn of(entries: Entries<T>, depth: u32) -> Self {
        if entries.is_empty() {
            return Self::Empty;
        }
        if entries.len() <= LEAF || depth == DEEPEST {
            return Self::Leaf(entries.into_iter().collect());
        }
        let size = entries.len();
        let mut parts: [Entries<T>; WIDTH] = Default::default();
        for entry in entries {
            if let Some(part) = parts.get_mut(place(entry.hash, depth)) {
                part.push(entry);
            }
        }
        let children = parts.map(|part| Self::of(part, depth + 1));
        Self::Branch(Arc::new(Branch { size, children }))
    }

    /// Takes out the entry of `old`, puts in `new`; both have this hash.
    fn change(&mut self, depth: u32, hash: u64, old: Option<&T>, new: Option<Entry<T>>) {
        match self {
            Self::Empty => *self = Self::of(new.into_iter().collect(), depth),
            Self::Leaf(entries) => *self = Self::of(changed(entries, hash, old, new), depth),
            Self::Branch(branch) => {
                let branch = Arc::make_mut(branch);
                let Some(child) = branch.children.get_mut(place(hash, depth)) else {
                    return;
                };
                let before = child.size();
                child.change(depth + 1, hash, old, new);
                branch.size = branch.size + child.size() - before;
                // Not as soon as it would fit: what comes and goes shall not turn a leaf into a branch and back each time.
                if branch.size <= LEAF / 2 {
                    let mut all = Entries::new();
                    self.gather(&mut all);
                    *self = Self::of(all, depth);
                }
            }
        }
    }
}

fn changed<T: Candidate>(
    before: &[Entry<T>],
    hash: u64,
    old: Option<&T>,
    new: Option<Entry<T>>,
) -> Entries<T> {
    let taken = |entry: &&Entry<T>| {
        entry.hash == hash
            && (old.is_some_and(|old| entry.item.same(old))
                || new.as_ref().is_some_and(|new| entry.item.same(&new.item)))
    };
    let mut entries: Entries<T> = before
        .iter()
        .filter(|entry| !taken(entry))
        .cloned()
        .collect();
    if let Some(new) = new {
        let place = entries.partition_point(|entry| {
            (entry.hash.cmp(&new.hash))
                .then_with(|| entry.item.order(&new.item))
                .is_lt()
        });
        entries.insert(place, new);
    }
    entries
}

/// Goes through a table.
pub(crate) struct Iter<'t, T> {
    /// What is left of each branch on the way down.
    above: Vec<slice::Iter<'t, Node<T>>>,
    leaf: slice::Iter<'t, Entry<T>>,
}

impl<'t, T> Iterator for Iter<'t, T> {
    type Item = &'t Arc<T>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(entry) = self.leaf.next() {
                return Some(&entry.item);
            }
            match self.above.last_mut()?.next() {
                None => drop(self.above.pop()),
                Some(Node::Empty) => {}
                Some(Node::Leaf(entries)) => self.leaf = entries.iter(),
                Some(Node::Branch(branch)) => self.above.push(branch.children.iter()),
            }
        }
    }
}

#[cfg(test)]
mod tests;
