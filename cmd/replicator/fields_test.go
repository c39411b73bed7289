package main

import (
	"encoding"
	"reflect"
	"strings"
)

// fieldsOf returns the names of the fields that a value has in JSON, as in peers[].name.
func fieldsOf(value any) (fields []string) {
	var walk func(path string, t reflect.Type)
	walk = func(path string, t reflect.Type) {
		for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice && t.Elem().Kind() != reflect.Uint8 {
			if t.Kind() == reflect.Slice {
				path += "[]"
			}
			t = t.Elem()
		}
		if t.Kind() != reflect.Struct || t.Implements(reflect.TypeFor[encoding.TextMarshaler]()) {
			fields = append(fields, path)
			return
		}
		for i := range t.NumField() {
			f := t.Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			switch {
			case f.Anonymous:
				walk(path, f.Type)
			case path == "":
				walk(name, f.Type)
			default:
				walk(path+"."+name, f.Type)
			}
		}
	}
	walk("", reflect.TypeOf(value))
	return fields
}
