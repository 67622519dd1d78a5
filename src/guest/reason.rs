//! What decided a page's class, in words. Knows nothing of how it was found.

use std::fmt;

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident, $text:literal;)*) => {
        /// What decided a page's class.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl fmt::Display for Reason {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Reason::$name => $text,)* })
            }
        }
    };
}

reasons! {
    /// No section, an offline section, or a struct page that is not mapped.
    NoStructPage, "the kernel has no struct page for it";
    /// Marked by who knows the bytes.
    Zero, "it holds only zeros";
    /// Taken out of use after a memory error.
    HwPoison, "a memory error took it out of use";
    /// A compound page whose tails do not belong to it.
    BrokenCompound, "its compound page contradicts itself";
    /// A tail without a head.
    OrphanTail, "it is a tail of no compound page";
    /// It could be done without, but for the copy of vmcoreinfo in it.
    Vmcoreinfo, "the guest is found by the vmcoreinfo in it";
    /// Of the slab allocator.
    Slab, "it belongs to the slab allocator";
    /// A page table by its type.
    PageTable, "its page type is page table";
    /// A type that is none of the others.
    OtherType, "it has a page type of the kernel's own";
    /// PG_reserved.
    Reserved, "it is reserved";
    /// In the buddy allocator.
    Buddy, "the buddy allocator holds it";
    /// A block of the buddy allocator that holds pages in use.
    BrokenBuddy, "the buddy allocator's block contradicts itself";
    /// On a per-CPU list.
    PerCpuList, "it is on a processor's list of free pages";
    /// PG_offline.
    Offline, "it was given back to the hypervisor";
    /// Nothing refers to it, but nothing says that it is free.
    Idle, "nothing refers to it, but it is on no list of free pages";
    /// Anonymous or KSM.
    Anonymous, "it is memory of a process";
    /// In the swap cache.
    SwapCache, "it is in the swap cache";
    /// Movable pages of drivers.
    Movable, "it is a movable page of a driver";
    /// A page that is no page cache.
    KernelPage, "the kernel holds it, for something else than page cache";
    /// A huge page of hugetlbfs.
    Hugetlb, "it is a huge page of hugetlbfs";
    /// Backed by swap.
    SwapBacked, "it is of tmpfs or shared memory, which only swap can hold";
    /// Dirty, writeback, locked.
    Dirty, "it is dirty page cache, being written, or locked";
    /// Mapped into a process.
    Mapped, "a process has it mapped";
    /// PG_uptodate is clear.
    NotUptodate, "its bytes were never read";
    /// Another flag is set that a page must not have.
    OtherFlags, "it has flags that rule out fetching it again";
    /// Somebody holds a reference.
    Referenced, "somebody holds a reference to it";
    /// No BTF.
    NoBtf, "the kernel has no BTF to understand its file by";
    /// The address space cannot be read.
    BrokenMapping, "its address space cannot be read or is not its inode's";
    /// No regular file and no block device.
    NotAFile, "it is of no regular file and no block device";
    /// No way to read it again.
    NoReader, "its file system has no way to read it again";
    /// A file system that is not known to fetch pages again.
    OtherFileSystem, "its file system is not known to fetch pages again";
    /// The mapping is unevictable, or going away.
    MappingFlags, "its address space is unevictable, inaccessible or going away";
    /// A write of this file failed once.
    WriteError, "a write of its file failed, so the disk may not hold it";
    /// A large folio in a mapping without such.
    LargeNotSupported, "its file system does not know large folios";
    /// Private data that cannot be vouched for.
    OtherPrivate, "it has private data that is not understood";
    /// A buffer head is in the way.
    BufferBusy, "one of its buffers is in use or not on the disk";
    /// The buffer heads contradict themselves.
    BrokenBuffers, "its buffers contradict themselves";
    /// iomap state in the way.
    IomapBusy, "its iomap state says that blocks are dirty or under way";
    /// btrfs before it was safe.
    OldBtrfs, "btrfs of this kernel keeps a record of its own of what was read";
    /// All was proved.
    Recoverable, "clean and unmapped, nobody refers to it, and its file can be read again";
    /// The same, with buffer heads.
    RecoverableBuffers, "as good as on its disk, and its buffer heads can be told so";
    /// The same, with iomap state.
    RecoverableIomap, "as good as on its disk, and its iomap state can be told so";
    /// The same, with btrfs's mark.
    RecoverableBtrfs, "as good as on its disk, of btrfs";
}
