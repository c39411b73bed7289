package replicator_test

import (
	"go/types"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/level-replicator/replicator"
	"github.com/stretchr/testify/require"
)

// TestAPI compares what the package exports to testdata/api.txt, so that a change of it
// is seen. To accept one: go test -run '^TestAPI$' . -update
func TestAPI(t *testing.T) {
	t.Parallel()
	const file = "testdata/api.txt"
	api := exportedAPI(checkPackage(t).types)
	text, err := os.ReadFile(file)
	golden := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	if *replicator.Update && !slices.Equal(golden, api) {
		require.NoError(t, os.WriteFile(file, []byte(strings.Join(api, "\n")+"\n"), 0o666))
		return
	}
	require.NoError(t, err)
	for _, line := range golden {
		if !slices.Contains(api, line) {
			t.Errorf("no longer exported: %s", line)
		}
	}
	for _, line := range api {
		if !slices.Contains(golden, line) {
			t.Errorf("not in %s: %s", file, line)
		}
	}
}

// exportedAPI returns a line for everything that a package exports, sorted.
func exportedAPI(pkg *types.Package) (lines []string) {
	in := func(other *types.Package) string {
		if other == pkg {
			return ""
		}
		return other.Name()
	}
	for _, name := range pkg.Scope().Names() {
		object := pkg.Scope().Lookup(name)
		if !object.Exported() {
			continue
		}
		switch object := object.(type) {
		case *types.Const:
			lines = append(lines, "const "+name+" "+types.TypeString(object.Type(), in)+" = "+object.Val().ExactString())
		case *types.Var:
			lines = append(lines, "var "+name+" "+types.TypeString(object.Type(), in))
		case *types.Func:
			lines = append(lines, "func "+name+signature(object, in))
		case *types.TypeName:
			lines = append(lines, exportedType(object, in)...)
		}
	}
	slices.Sort(lines)
	return lines
}

// exportedType returns lines for a type, its exported fields, with their tags, and its
// exported methods.
func exportedType(object *types.TypeName, in types.Qualifier) (lines []string) {
	name, shape := object.Name(), object.Type().Underlying()
	fields, isStruct := shape.(*types.Struct)
	if !isStruct {
		lines = append(lines, "type "+name+" "+types.TypeString(shape, in))
	} else {
		lines = append(lines, "type "+name+" struct")
		for i := range fields.NumFields() {
			field := fields.Field(i)
			if !field.Exported() {
				continue
			}
			line := name + "." + field.Name() + " " + types.TypeString(field.Type(), in)
			if field.Embedded() {
				line += " (embedded)"
			}
			if tag := fields.Tag(i); tag != "" {
				line += " `" + tag + "`"
			}
			lines = append(lines, line)
		}
	}
	if named, ok := object.Type().(*types.Named); ok {
		for method := range named.Methods() {
			if method.Exported() {
				receiver := types.TypeString(method.Signature().Recv().Type(), in)
				lines = append(lines, "func ("+receiver+") "+method.Name()+signature(method, in))
			}
		}
	}
	return lines
}

// signature returns the types of a function's parameters and results, without their
// names.
func signature(f *types.Func, in types.Qualifier) string {
	unnamed := func(tuple *types.Tuple) *types.Tuple {
		var vars []*types.Var
		for v := range tuple.Variables() {
			vars = append(vars, types.NewParam(v.Pos(), v.Pkg(), "", v.Type()))
		}
		return types.NewTuple(vars...)
	}
	s := f.Signature()
	s = types.NewSignatureType(nil, nil, nil, unnamed(s.Params()), unnamed(s.Results()), s.Variadic())
	return strings.TrimPrefix(types.TypeString(s, in), "func")
}
