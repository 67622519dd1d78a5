//! What a file is: names, attributes, handles, gathering, extent maps, commits and reading. The only room
//! that brings guests, snapshots, the store and the metadata together.
