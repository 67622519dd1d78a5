//! Which pages of a guest are expendable, and whether they are kept at all: the words of `[policy]`, and of the attribute
//! `user.parsfs.policy` that a directory or a file may have beside it. Knows the words and no files.

use super::parse::Parsed;
use crate::guest::{ClassSet, PageClass};

/// What is expendable, and what becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiering {
    /// The classes of pages that a guest may lose, but for what is kept all the same.
    pub classes: ClassSet,
    /// Clean page cache is kept whatever the classes say.
    pub keep_cache: bool,
    /// Their bytes are not kept at all.
    pub drop: bool,
}

impl Default for Tiering {
    fn default() -> Self {
        Tiering {
            classes: ClassSet::MENDABLE,
            keep_cache: false,
            drop: false,
        }
    }
}

impl Tiering {
    /// The classes whose pages are expendable.
    pub fn expendable(&self) -> ClassSet {
        match self.keep_cache {
            true => self.classes.without(PageClass::CacheClean),
            false => self.classes,
        }
    }

    /// These, as changed by the words of an attribute: `key=value` with spaces, commas or line ends between them, such as
    /// `keep_cache=true expendable_classes=free,offline`. Nothing in it changes nothing.
    pub fn with_words(self, text: &str) -> Parsed<Tiering> {
        let mut tiering = self;
        for word in text.split_whitespace() {
            let (key, value) = word.split_once('=').ok_or_else(|| wrong(word))?;
            match (key, value) {
                ("expendable", "keep") => tiering.drop = false,
                ("expendable", "drop") => tiering.drop = true,
                ("expendable_classes", names) => {
                    let names = names.split(',').filter(|name| !name.is_empty());
                    tiering.classes = classes(names)?;
                }
                ("keep_cache", "true") => tiering.keep_cache = true,
                ("keep_cache", "false") => tiering.keep_cache = false,
                _ => return Err(wrong(word)),
            }
        }
        Ok(tiering)
    }
}

fn wrong(word: &str) -> String {
    format!(
        "\"{word}\" is none of expendable=drop, expendable=keep, keep_cache=true, keep_cache=false, expendable_classes=LIST (of {}, with commas between \
         them)",
        ClassSet::MENDABLE
    )
}

/// A list of classes that may be lost.
pub fn classes<'n>(names: impl IntoIterator<Item = &'n str>) -> Parsed<ClassSet> {
    let mut set = ClassSet::EMPTY;
    for name in names {
        let class = PageClass::ALL.iter().find(|class| class.name() == name);
        match class {
            Some(&class) if ClassSet::MENDABLE.contains(class) => set = set.with(class),
            // There is nothing to lose in them.
            Some(PageClass::Zero) => {}
            Some(class) => {
                return Err(format!(
                    "a guest cannot go on without pages of class {class}; those that it can do without are {}",
                    ClassSet::MENDABLE
                ));
            }
            None => {
                return Err(format!(
                    "there is no class \"{name}\"; those that a guest can do without are {}",
                    ClassSet::MENDABLE
                ));
            }
        }
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_change_what_they_name_and_nothing_else() {
        let usual = Tiering::default();
        let of = |text: &str| usual.with_words(text).unwrap();
        assert_eq!(of(""), usual);
        assert_eq!(of("keep_cache=false"), usual);
        assert!(of("expendable=drop").drop);
        assert_eq!(of("expendable=drop").classes, usual.classes);
        assert_eq!(of("expendable=drop\nexpendable=keep"), usual);
        let without_cache = ClassSet::MENDABLE.without(PageClass::CacheClean);
        assert_eq!(of("keep_cache=true").expendable(), without_cache);
        // In any order, and a directory may take back what the config says.
        let both = "keep_cache=true expendable_classes=free,cache-clean";
        let free = ClassSet::EMPTY.with(PageClass::Free);
        assert_eq!(of(both).expendable(), free);
        let config = of("keep_cache=true");
        assert_eq!(config.with_words("keep_cache=false").unwrap(), usual);
        let listed = of("expendable_classes=free,zero");
        assert_eq!(listed.classes, ClassSet::EMPTY.with(PageClass::Free));
        assert_eq!(of("expendable_classes=").classes, ClassSet::EMPTY);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let refused = |text: &str| Tiering::default().with_words(text).unwrap_err();
        assert!(refused("drop").contains("\"drop\""));
        assert!(refused("expendable=never").contains("expendable=never"));
        assert!(refused("expendable_classes=free,anon").contains("without pages of class anon"));
        assert!(refused("expendable_classes=fre").contains("no class \"fre\""));
    }
}
