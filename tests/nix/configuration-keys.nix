# The keys of the daemon's file that `nixos/settings.nix` has an option for, as docs/config.md writes them
# ("mounts.NAME.path"). It takes the functions that make options from here, so that no lib is needed.
let
  leaf = { };
  settings = import ../../nixos/settings.nix {
    format.type = leaf;
    lib = {
      mkOption = option: option;
      types = {
        attrsOf = type: { each = type; };
        nullOr = type: type;
        submodule = module: { inherit (module) options; };
        bool = leaf;
        either = _: _: leaf;
        enum = _: leaf;
        ints = {
          between = _: _: leaf;
          positive = leaf;
          unsigned = leaf;
          u32 = leaf;
        };
        listOf = _: leaf;
        str = leaf;
      };
    };
  };

  keysOf =
    key: type:
    if type ? each then
      keysOf "${key}.NAME" type.each
    else if type ? options then
      keysIn "${key}." type.options
    else
      [ key ];
  keysIn =
    prefix: options:
    builtins.concatMap (name: keysOf "${prefix}${name}" options.${name}.type) (
      builtins.attrNames options
    );
in
keysIn "" settings.options
