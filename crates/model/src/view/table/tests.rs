//! Against a plain map, whatever the history.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use proptest::prelude::any;
use proptest::{collection, prop_assert_eq, proptest};

use super::{Key, LEAF, Node, Table};
use crate::view::index::Candidate;

/// Who it is, the key it is found by, and its rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Item {
    id: u16,
    key: u16,
    rank: u8,
}

impl Candidate for Item {
    fn order(&self, other: &Self) -> Ordering {
        (self.rank, self.id).cmp(&(other.rank, other.id))
    }

    fn same(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

#[derive(Debug)]
struct ByKey;

impl Key for ByKey {
    type Item = Item;
    type Probe<'a> = u16;

    fn finds(item: &Item, key: u16) -> bool {
        item.key == key
    }
}

/// Every hash is the same.
#[derive(Debug)]
struct Alike;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Nothing(u16);

impl Hash for Nothing {
    fn hash<H: Hasher>(&self, _state: &mut H) {}
}

impl Key for Alike {
    type Item = Item;
    type Probe<'a> = Nothing;

    fn finds(item: &Item, key: Nothing) -> bool {
        item.key == key.0
    }
}

fn put(table: &mut Table<ByKey>, all: &mut BTreeMap<u16, Item>, item: Item) {
    let old = all.insert(item.id, item);
    let new = Arc::new(item);
    table.replace(
        old.as_ref().map(|old| (old.key, old)),
        Some((new.key, &new)),
    );
}

fn check(table: &Table<ByKey>, all: &BTreeMap<u16, Item>) {
    assert_eq!(table.size(), all.len());
    assert_eq!(table.iter().count(), all.len());
    for item in all.values() {
        let mut expected: Vec<Item> = all
            .values()
            .filter(|other| other.key == item.key)
            .copied()
            .collect();
        expected.sort_by(Item::order);
        let found: Vec<Item> = table.get(item.key).map(|found| **found).collect();
        assert_eq!(found, expected);
    }
}

proptest! {
    #[test]
    fn finds_what_a_plain_map_finds(
        changes in collection::vec((0..200_u16, 0..100_u16, any::<u8>(), any::<bool>()), 0..600),
    ) {
        let (mut table, mut all) = (Table::<ByKey>::default(), BTreeMap::new());
        for (id, key, rank, put_in) in changes {
            if put_in {
                put(&mut table, &mut all, Item { id, key, rank });
            } else if let Some(old) = all.remove(&id) {
                table.replace(Some((old.key, &old)), None);
            }
        }
        check(&table, &all);
        // The same set in another order makes an equal table.
        let mut again = Table::<ByKey>::default();
        for item in all.values().rev() {
            let item = Arc::new(*item);
            again.replace(None, Some((item.key, &item)));
        }
        prop_assert_eq!(&table, &again);
    }
}

#[test]
fn a_change_leaves_the_table_before_as_it_was() {
    let (mut table, mut all) = (Table::<ByKey>::default(), BTreeMap::new());
    for id in 0..1000 {
        put(
            &mut table,
            &mut all,
            Item {
                id,
                key: id,
                rank: 0,
            },
        );
    }
    let (before, known) = (table.clone(), all.clone());
    for id in 0..1000 {
        put(
            &mut table,
            &mut all,
            Item {
                id,
                key: 7 * id,
                rank: 1,
            },
        );
    }
    check(&before, &known);
    check(&table, &all);
}

#[test]
fn what_becomes_small_again_takes_little_again() {
    let (mut table, mut all) = (Table::<ByKey>::default(), BTreeMap::new());
    for id in 0..1000 {
        put(
            &mut table,
            &mut all,
            Item {
                id,
                key: id,
                rank: 0,
            },
        );
    }
    for id in 3..1000 {
        let old = all.remove(&id).unwrap();
        table.replace(Some((id, &old)), None);
    }
    check(&table, &all);
    assert!(matches!(table.root, Node::Leaf(_)));
    for id in 0..3 {
        let old = all.remove(&id).unwrap();
        table.replace(Some((id, &old)), None);
    }
    assert!(matches!(table.root, Node::Empty));
}

#[test]
fn keys_of_one_hash_are_told_apart() {
    let mut table = Table::<Alike>::default();
    let many = u16::try_from(3 * LEAF).unwrap();
    let item = |id: u16, rank| {
        Arc::new(Item {
            id,
            key: id / 2,
            rank,
        })
    };
    for id in 0..many {
        table.replace(None, Some((Nothing(id / 2), &item(id, 0))));
    }
    assert_eq!(table.size(), usize::from(many));
    for key in 0..many / 2 {
        let found: Vec<u16> = table.get(Nothing(key)).map(|found| found.id).collect();
        assert_eq!(found, [2 * key, 2 * key + 1]);
    }
    let (old, new) = (item(4, 0), item(4, 9));
    table.replace(Some((Nothing(2), &old)), Some((Nothing(2), &new)));
    let found: Vec<u16> = table.get(Nothing(2)).map(|found| found.id).collect();
    assert_eq!(found, [5, 4]);
    assert_eq!(table.size(), usize::from(many));
}
